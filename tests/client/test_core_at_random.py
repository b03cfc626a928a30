"""The core among nodes that do anything, judged by what they really got.

Each seed is a few hundred random steps: calls, connections made and lost, batches taken, answered in any order, refused
by ZeroMQ or answered with rubbish, time passing. The judge keeps what reached the nodes and holds every outcome against
it. Hypothesis only chooses the seeds; a failing one replays alone.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum import errors, wire
from kvorum import etcd_pb2 as pb
from kvorum.core import Call, Core, Phase, Session
from kvorum.endpoints import Endpoints
from kvorum.wire import BATCH_BYTES_MAX, PROTOCOL, Kind, Method, Record

STEPS = 300
ERRORS = [errors.EmptyKey(), errors.NoLeader(), errors.TimedOut(), errors.TooManyRequests(), errors.KvorumError("?")]


class Judge:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)
        addresses = [f"tcp://n{i}:1" for i in range(self.dice.randint(1, 3))]
        self.core = Core(Endpoints(addresses, Random(seed), shuffle=True), Random(seed + 1))
        self.now = 0.0
        self.calls: list[Call] = []
        self.sessions: dict[Session, list[Record]] = {}
        """What each living connection has been given and has not answered."""
        self.left: dict[bytes, int] = {}
        """How often each call, by its payload, has left."""
        self.outcomes: dict[bytes, bytes | errors.KvorumError] = {}
        self.answers: dict[bytes, set[bytes]] = {}

    def step(self) -> None:
        action = self.dice.choices(
            [self.call, self.take, self.answer, self.rubbish, self.lose, self.shake_hands, self.wait, self.forget],
            [30, 30, 30, 1, 2, 15, 15, 1],
        )[0]
        action()
        self.settle()

    def settle(self) -> None:
        """What a shell does after each event."""
        if self.now >= self.core.wake_at:
            self.core.tick(self.now)
        for session in self.core.closing:
            self.sessions.pop(session, None)
        self.core.closing.clear()
        for session in self.core.opening:
            self.sessions[session] = []
        self.core.opening.clear()
        while self.core.finished:
            self.finish(self.core.finished.popleft())

    def finish(self, call: Call) -> None:
        assert call.finished
        assert call.payload not in self.outcomes, "an outcome told twice"
        self.outcomes[call.payload] = call.error or call.reply
        left = self.left.get(call.payload, 0)
        if call.error is None:
            assert call.reply in self.answers[call.payload], "an answer that no node gave to this call"
        elif isinstance(call.error, errors.Unreachable):
            assert left == 0 or call.again, "said to be certainly not done, and had left"
        elif isinstance(call.error, errors.ConnectionLost | errors.DeadlineExceeded):
            assert left > 0, "said to be perhaps done, and never left"
        assert left <= 1 or call.again, "a write left twice"

    # ---- steps

    def call(self) -> None:
        again = self.dice.random() < 0.4
        payload = b"%d" % len(self.calls)
        timeout = self.dice.choice([0.01, 0.5, 2.0, 10.0])
        call = Call(Method.RANGE if again else Method.PUT, payload, self.now + timeout, again=again)
        self.calls.append(call)
        self.core.submit(call, self.now)

    def take(self) -> None:
        batch = self.core.take()
        if not batch:
            return
        assert len(batch) <= BATCH_BYTES_MAX
        session = self.core.current
        assert session is not None
        if self.dice.random() < 0.1:
            self.core.untake(batch)
            return
        for record in wire.decode(batch):
            if record.method == Method.HELLO:
                self.greet(session, record)
                return
            assert session.phase is Phase.READY, "a call left before Hello was answered"
            self.left[record.payload] = self.left.get(record.payload, 0) + 1
            self.sessions[session].append(record)

    def greet(self, session: Session, record: Record) -> None:
        if self.dice.random() < 0.7:
            hello = pb.HelloResponse(header=pb.ResponseHeader(cluster_id=1), protocol=PROTOCOL)
            self.core.received(session, self.reply(record, hello.SerializeToString()), self.now)

    def answer(self) -> None:
        for session, owed in list(self.sessions.items()):
            self.dice.shuffle(owed)
            batch = []
            for record in owed[: self.dice.randint(0, len(owed))]:
                owed.remove(record)
                if self.dice.random() < 0.7:
                    answer = b"%s answered as %d" % (record.payload, record.id)
                    self.answers.setdefault(record.payload, set()).add(answer)
                    batch.append(self.reply(record, answer))
                else:
                    error = self.dice.choice(ERRORS)
                    text = error.text.encode()
                    batch.append(wire.encode(record.method, Kind.REPLY, error.code, record.id, text))
            self.core.received(session, b"".join(batch), self.now)

    def reply(self, record: Record, payload: bytes) -> bytes:
        return wire.encode(record.method, Kind.REPLY, 0, record.id, payload)

    def rubbish(self) -> None:
        for session in list(self.sessions)[:1]:
            self.core.received(session, self.dice.randbytes(self.dice.randint(1, 40)), self.now)

    def lose(self) -> None:
        for session in list(self.sessions):
            if self.dice.random() < 0.5:
                self.core.lost(session, self.now, "lost")

    def shake_hands(self) -> None:
        for session in list(self.sessions):
            self.core.connected(session, self.now)

    def wait(self) -> None:
        self.now += self.dice.choice([0.001, 0.03, 0.3])

    def forget(self) -> None:
        if self.calls:
            call = self.dice.choice(self.calls)
            if not call.finished:
                self.core.forget(call)
                self.outcomes[call.payload] = errors.Ambiguous()


def run(seed: int) -> Judge:
    judge = Judge(seed)
    for _ in range(STEPS):
        judge.step()
    for _ in range(100):  # all deadlines pass
        judge.now += 0.2
        judge.settle()
    assert all(call.finished for call in judge.calls), "a call that never ends"
    assert len(judge.outcomes) == len(judge.calls), "an outcome never told"
    assert judge.core.load == 0
    return judge


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_every_call_ends_once_and_its_end_is_true(seed: int) -> None:
    """DESIGN section 10: an unacknowledged write may have happened, at most once, and the client says so."""
    run(seed)


def test_the_runs_reach_every_kind_of_end() -> None:
    """Otherwise the judge sleeps."""
    kinds: set[type] = set()
    for seed in range(30):
        kinds |= {type(outcome) for outcome in run(seed).outcomes.values()}
    assert kinds >= {bytes, errors.Unreachable, errors.ConnectionLost, errors.DeadlineExceeded, errors.NoLeader}


class SendsWritesAgain(Core):
    """A client as one would like it to be: a lost connection is no reason to bother the user."""

    def _drop(self, session: Session, *args: object, **kwargs: object) -> None:
        for call in session.pending.values():
            call.again = True
        super()._drop(session, *args, **kwargs)  # type: ignore[arg-type]
        for call in self.outbox:
            call.again = call.method == Method.RANGE


class SaysUnreachable(Core):
    """A client that calls every lost connection certainly not done."""

    def _finish(self, call: Call, error: errors.KvorumError) -> None:
        super()._finish(call, errors.Unreachable() if isinstance(error, errors.ConnectionLost) else error)


class ForgetsTheQueue(Core):
    """A client that loses what it had not sent when a connection goes."""

    def _drop(self, session: Session, *args: object, **kwargs: object) -> None:
        self.outbox.clear()
        super()._drop(session, *args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("mutant", [SendsWritesAgain, SaysUnreachable, ForgetsTheQueue])
def test_the_judge_catches(mutant: type[Core], monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that nothing fails proves nothing."""
    monkeypatch.setitem(globals(), "Core", mutant)

    def caught(seed: int) -> bool:
        try:
            run(seed)
        except AssertionError:
            return True
        return False

    assert any(caught(seed) for seed in range(20))
