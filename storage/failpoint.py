"""Named places where a test can make a process crash, wait or fail.

    failpoint.hit("raft.before_send")        in the code, wherever a crash or a pause could matter
    KVORUM_FAILPOINT="raft.before_send:panic;wal.cut:3*sleep(200);apply.flush:error(ENOSPC)"

| action | does |
| --- | --- |
| `panic` | SIGKILL to this process: no handler runs, no buffer is flushed, as in a crash |
| `sleep(MS)` | waits that many milliseconds |
| `error`, `error(NAME)` | raises OSError with that errno, EIO by default |

`N*action` strikes on the N-th hit only, counted from 1 in each process; without it, on every hit. A value `@FILE` reads
the text from FILE when the process starts and again, all counts forgotten, whenever FILE has changed, no file meaning
no failpoint: so a test can strike a process that runs, and let its successor come back whole. A text that isn't
understood is refused when it is read, since a test whose failpoint is misspelled would pass.

Without the variable a hit costs one function call and one truth test. This is no pure room: it is how tests reach into
shells and the disk code.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import NamedTuple

VARIABLE = "KVORUM_FAILPOINT"


class Malformed(ValueError):
    """The text of KVORUM_FAILPOINT makes no sense; says where."""


class _Strike(NamedTuple):
    nth: int  # 0: every time
    action: str
    argument: int


def parse(text: str) -> dict[str, _Strike]:
    """The failpoints in `text` (without the `@FILE` form). Raises Malformed."""
    armed: dict[str, _Strike] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, colon, rest = part.partition(":")
        name = name.strip()
        if not colon or not name:
            raise Malformed(f"failpoint {part!r}: expected name:action")
        if name in armed:
            raise Malformed(f"failpoint {name!r} is given twice")
        count, star, action = rest.strip().rpartition("*")
        if star and (not count.isdecimal() or int(count) == 0):
            raise Malformed(f"failpoint {part!r}: {count!r} is no count from 1")
        armed[name] = _strike(part, int(count or 0), action)
    return armed


def _strike(part: str, nth: int, action: str) -> _Strike:
    verb, bracket, argument = action.partition("(")
    if bracket and not argument.endswith(")"):
        raise Malformed(f"failpoint {part!r}: a bracket is open")
    argument = argument[:-1]
    if verb == "panic" and not bracket:
        return _Strike(nth, verb, 0)
    if verb == "sleep" and argument.isdecimal():
        return _Strike(nth, verb, int(argument))
    if verb == "error":
        number = getattr(errno, argument or "EIO", None)
        if isinstance(number, int):
            return _Strike(nth, verb, number)
    raise Malformed(f"failpoint {part!r}: unknown action {action!r} (known: panic, sleep(MS), error, error(ERRNO))")


def arm(text: str) -> None:
    """Replace what is armed in this process by `text`, forgetting all counts. For tests, and for the start."""
    global _live, _file, _stamp
    _file = text[1:] if text.startswith("@") else ""
    if _file:
        _stamp = _stamp_of(_file)
        try:
            with open(_file, encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            text = ""
    armed = parse(text)
    _armed.clear()
    _hits.clear()
    _armed.update(armed)
    _live = bool(_armed or _file)


def _stamp_of(path: str) -> tuple[int, int] | None:
    """What tells one content of a file from the next, if each is a new file renamed to its place."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def hit(name: str) -> None:
    """Here `name` may strike. Returns at once unless it is armed."""
    if _live:
        _act(name)


def _act(name: str) -> None:
    if _file and _stamp_of(_file) != _stamp:
        arm(f"@{_file}")
    strike = _armed.get(name)
    if strike is None:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if strike.nth not in (0, _hits[name]):
        return
    if strike.action == "panic":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the kernel may let us run on for a moment; nothing after the point may happen
    elif strike.action == "sleep":
        time.sleep(strike.argument / 1000)
    else:
        raise OSError(strike.argument, f"{os.strerror(strike.argument)} (failpoint {name})")


_armed: dict[str, _Strike] = {}
_hits: dict[str, int] = {}
_live = False
_file = ""
_stamp: tuple[int, int] | None = None
arm(os.environ.get(VARIABLE, ""))
