"""The language of golden scripts.

A script is blocks with blank lines between them:

    # Comments tell the story.
    command
    command
    ---
    what happened, one line each

Commands (N, M are members; inputs joined by `;` happen in one turn of the member):

    cluster nodes=3 [election_ticks=10 ...]    a new cluster with this Config; member n times out n - 1 ticks late
    disk N terms=1,1,2 [term= vote= commit=]   restart N with this on its disk
    campaign N | tick N [count] | propose N DATA [context] | read N CONTEXT | transfer N M | eligible N yes|no
    turn N                                     take out what is ready; every other command does so by itself
    deliver N [from=M] [type=T] [at=K]         all that waits for N, or only that (the Kth of them); in one turn
    repeat N [from=M] [type=T] [at=K]          the same, and it will come again
    drop N [from=M] [type=T] [at=K]            lose it
    sync N [count]                             all pending writes of N come down, or the oldest ones
    stabilize [N M ...]                        turns, deliveries and syncs until nothing moves; no time passes
    cut N M | cut N | heal                     links, in both directions; `cut N` all of N's
    crash N [down=count]                       kill and restart; pending writes are lost, but for the oldest `count`
    status [N ...] | log N                     look

After `quiet`, the rest of a block shows roles, commits and reads alone. In the output, `n1@2 → n3` is a message of term
2 on its way, `✗` one that a cut link lost.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.raft.core import ProposalDropped, Raft, TransferRefused
from cluster.raft.message import Message
from storage.entry import HardState
from tests.raft.harness import Cluster, Disk, describe, describe_places, describe_role


class ScriptError(Exception):
    """The script makes no sense."""


class Runner:
    def __init__(self, raft: type[Raft] = Raft) -> None:
        self.cluster = Cluster(0)
        self.raft = raft

    def run(self, text: str) -> str:
        """Run a script; gives it back with what happens now as its output."""
        blocks = [block for block in text.strip("\n").split("\n\n") if block.strip()]
        return "\n\n".join(self._block(block) for block in blocks) + "\n"

    def _block(self, block: str) -> str:
        commands = block.split("\n---")[0].splitlines()
        self.cluster.trace = []
        quiet = False
        output: list[str] = []
        for line in commands:
            if line.startswith("#") or not line.strip():
                continue
            if line == "quiet":
                quiet = True
                continue
            self._line(line)
            trace, self.cluster.trace = self.cluster.trace, []
            if quiet:
                trace = [line for line in trace if not any(word in line for word in ("→", "✗", "writes", "holds"))]
            output += trace
        if all(line.startswith("#") for line in commands):
            return "\n".join(commands)
        return "\n".join([*commands, "---", *(output or ["(nothing)"])])

    def _line(self, line: str) -> None:
        touched: list[int] = []
        for command in line.split(";"):
            name, *words = command.split()
            plain = [word for word in words if "=" not in word]
            named = dict(word.split("=", 1) for word in words if "=" in word)
            method = getattr(self, "_" + name, None)
            if method is None or name in ("line", "block", "wanted"):
                raise ScriptError(f"no such command: {line}")
            id = method(plain, named)
            if id is not None and id not in touched:
                touched.append(id)
        for id in touched:
            self.cluster.turn(id)

    # Commands that give a member back leave its turn to the end of the line

    def _cluster(self, plain: list[str], named: dict[str, str]) -> None:
        self.cluster = Cluster(raft=self.raft, **{key: int(value) for key, value in named.items()})  # type: ignore[arg-type]

    def _disk(self, plain: list[str], named: dict[str, str]) -> None:
        terms = [int(term) for term in named["terms"].split(",") if term]
        term = int(named.get("term", max(terms, default=0)))
        state = HardState(term, int(named.get("vote", 0)), int(named.get("commit", 0)))
        self.cluster.boot(int(plain[0]), Disk(terms, state))

    def _campaign(self, plain: list[str], named: dict[str, str]) -> int:
        self.cluster[int(plain[0])].campaign()
        return int(plain[0])

    def _tick(self, plain: list[str], named: dict[str, str]) -> int | None:
        if len(plain) == 1:
            self.cluster[int(plain[0])].tick()
            return int(plain[0])
        self.cluster.tick(int(plain[0]), int(plain[1]))
        return None

    def _propose(self, plain: list[str], named: dict[str, str]) -> int:
        try:
            self.cluster[int(plain[0])].propose(plain[1].encode(), int(plain[2]) if len(plain) > 2 else 0)
        except ProposalDropped as dropped:
            self.cluster.trace.append(f"n{plain[0]} drops {plain[1]}: {dropped}")
        return int(plain[0])

    def _read(self, plain: list[str], named: dict[str, str]) -> int:
        self.cluster[int(plain[0])].read_index(int(plain[1]))
        return int(plain[0])

    def _transfer(self, plain: list[str], named: dict[str, str]) -> int:
        try:
            self.cluster[int(plain[0])].transfer_leadership(int(plain[1]))
        except TransferRefused as refused:
            self.cluster.trace.append(f"n{plain[0]} refuses: {refused}")
        return int(plain[0])

    def _eligible(self, plain: list[str], named: dict[str, str]) -> None:
        self.cluster[int(plain[0])].eligible = plain[1] == "yes"

    def _turn(self, plain: list[str], named: dict[str, str]) -> int:
        return int(plain[0])

    def _deliver(self, plain: list[str], named: dict[str, str]) -> None:
        if not self.cluster.deliver(int(plain[0]), self._wanted(plain, named)):
            raise ScriptError(f"nothing to deliver: {plain} {named}")

    def _repeat(self, plain: list[str], named: dict[str, str]) -> None:
        if not self.cluster.deliver(int(plain[0]), self._wanted(plain, named), keep=True):
            raise ScriptError(f"nothing to deliver: {plain} {named}")

    def _drop(self, plain: list[str], named: dict[str, str]) -> None:
        before = len(self.cluster.network)
        self.cluster.drop(int(plain[0]), self._wanted(plain, named))
        if len(self.cluster.network) == before:
            raise ScriptError(f"nothing to drop: {plain} {named}")

    def _sync(self, plain: list[str], named: dict[str, str]) -> None:
        if not self.cluster.disks[int(plain[0])].pending:
            raise ScriptError(f"nothing to sync: {plain}")
        self.cluster.sync(int(plain[0]), int(plain[1]) if len(plain) > 1 else None)

    def _stabilize(self, plain: list[str], named: dict[str, str]) -> None:
        self.cluster.stabilize(int(id) for id in plain)

    def _cut(self, plain: list[str], named: dict[str, str]) -> None:
        if len(plain) == 1:
            self.cluster.isolate(int(plain[0]))
        else:
            self.cluster.cut(int(plain[0]), int(plain[1]))

    def _heal(self, plain: list[str], named: dict[str, str]) -> None:
        self.cluster.heal()

    def _crash(self, plain: list[str], named: dict[str, str]) -> None:
        self.cluster.crash(int(plain[0]), int(named.get("down", 0)))

    def _status(self, plain: list[str], named: dict[str, str]) -> None:
        for id in map(int, plain or self.cluster.voters):
            raft = self.cluster[id]
            log = raft.log
            places = describe_places((i, log.term(i)) for i in range(log.first_index, log.last_index + 1))
            self.cluster.trace.append(
                f"n{id}@{raft.term} {describe_role(raft)}; voted {raft.vote}; log {places or 'empty'}; "
                f"stable {log.stable_index}; committed {raft.commit}; applicable {raft.applicable}"
            )

    def _log(self, plain: list[str], named: dict[str, str]) -> None:
        log = self.cluster[int(plain[0])].log
        for entry in log.slice(log.first_index, log.last_index, 1 << 40):
            self.cluster.trace.append(f"n{plain[0]} has {entry.index}@{entry.term} {entry.data.decode() or '(empty)'}")

    def _wanted(self, plain: list[str], named: dict[str, str]) -> Callable[[Message], bool]:
        found = [m for m in self.cluster.network if m.to == int(plain[0])]
        if "from" in named:
            found = [m for m in found if m.sender == int(named["from"])]
        if "type" in named:
            found = [m for m in found if describe(m).split()[0] == named["type"]]
        if "at" in named:
            found = found[int(named["at"]) - 1 :][:1]
        return lambda m: any(m is other for other in found)
