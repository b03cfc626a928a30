"""The physical half of a compaction: taking away, in small steps, what can no longer be asked for.

Compacting to C is done at once in the state machine (revisions below C are refused from then on); this room gives the
space back, at leisure. What must go are the changes of revisions below C that are not the newest change of their key
up to C, and deletions below C. What happened exactly at C stays, deletions too: history may be read from C on.

The walk is over the changes made since the last completed sweep, not over all keys:

    r   ... | done ───── walked, in order ───── target | ...
              each change takes away the one before it of the same key, if that is below the target;
              a deletion below the target takes itself away

Every change that must go is met that way: it either has a successor up to C, which is walked after it, or it is a
deletion. Nothing else is met: a change is taken away only for a successor at or below the compaction point, or as a
deletion below it, and neither can be the answer to a read or an event at C or later. The walk begins with the revision
`done` itself, because what stayed there only for being exactly at the compaction point may go now. So what is left
depends on C alone, not on the steps, the compactions before it, or the crashes in between: replicas agree byte for
byte.

One step is one batch of the engine, with the cursor in it. After a crash the sweep goes on from the last step that
survived. Pure.
"""

from __future__ import annotations

from storage import codec
from storage.codec import Sweep
from storage.engine import Batch, Engine

STEP_CHANGES = 1000
STEP_BYTES = 1 << 20


def step(engine: Engine, batch: Batch, sweep: Sweep, compacted: int) -> Sweep | None:
    """Add one step's deletions and the new cursor to `batch`, which the caller writes. None: nothing is left to do.

    A step walks at most STEP_CHANGES changes or about STEP_BYTES of them, whichever is first.
    """
    if sweep.target == sweep.done:
        if compacted <= sweep.done:
            return None
        sweep = Sweep(sweep.done, compacted, sweep.done, 0)
    target, walked, size = sweep.target, 0, 0
    start, end = codec.revision_key(sweep.main, sweep.sub), codec.revision_key(target + 1, 0)
    after = Sweep(target, target)
    for place, event in engine.scan(start, end):
        main, sub = codec.revision_place(place)
        if walked == STEP_CHANGES or size >= STEP_BYTES:
            after = Sweep(sweep.done, target, main, sub)
            break
        walked, size = walked + 1, size + len(event)
        _settle(engine, batch, target, main, sub, event)
    batch.put(codec.SWEEP, codec.pack_sweep(after))
    return after


def _settle(engine: Engine, batch: Batch, target: int, main: int, sub: int, event: bytes) -> None:
    change = codec.parse_event(event)
    key, deletion = change.kv.key, change.type == codec.DELETE
    entry = codec.history_key(key, main, sub)
    if deletion or change.kv.version > 1:  # before a first version there is at most a deletion, which goes by itself
        older = engine.first(entry + b"\0", codec.history_end(key))
        if older is not None:
            place = codec.history_place(older[0])
            if place[0] < target:
                batch.delete(older[0])
                batch.delete(codec.revision_key(*place))
    if deletion and main < target:
        batch.delete(entry)
        batch.delete(codec.revision_key(main, sub))
