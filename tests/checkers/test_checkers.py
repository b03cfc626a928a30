"""The judges judged: right histories pass, and every kind of wrong one is seen.

A judge that has never said no proves nothing. Right histories come from a toy server that is linearizable by
construction (each operation takes effect at one instant of its interval); wrong ones are written by hand, one violation
each, and the smallest that shows it.
"""

from __future__ import annotations

import random

import pytest

from kvorum import etcd_pb2 as pb
from kvorum.errors import FutureRevision, TimedOut, TooManyRequests
from tests.checkers.history import Operation, Request
from tests.checkers.linearizability import Undecided, check_linearizable
from tests.checkers.model import Pair, Unjudged, execute
from tests.checkers.replay import check_replay

# ---- histories by hand


class Book:
    """Writes a history down: each method is one operation from `start` to `end`, answered with what is given."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.truth: dict[int, list[pb.Event]] = {}

    def add(self, span: tuple[float, float | None], request: Request, answer: object = None, error=None) -> Operation:
        at = len(self.operations)
        op = Operation(at, at, 1, span[0], request, span[1], answer, error)  # type: ignore[arg-type]
        self.operations.append(op)
        return op

    def event(self, revision: int, key: str, value: str | None, create: int = 0, version: int = 1) -> None:
        kv = pb.KeyValue(key=key.encode(), mod_revision=revision)
        if value is not None:
            kv = _kv(key, value, create or revision, revision, version)
        kind = pb.Event.DELETE if value is None else pb.Event.PUT
        self.truth.setdefault(revision, []).append(pb.Event(type=kind, kv=kv))

    def put(self, span, key: str, value: str, revision: int | None = None, error=None) -> Operation:
        request = pb.PutRequest(key=key.encode(), value=value.encode())
        answer = None if revision is None else pb.PutResponse(header=_header(revision))
        return self.add(span, request, answer, error)

    def get(self, span, key: str, found: pb.KeyValue | None, revision: int, serializable: bool = False) -> Operation:
        request = pb.RangeRequest(key=key.encode(), serializable=serializable)
        kvs = [] if found is None else [found]
        return self.add(span, request, pb.RangeResponse(header=_header(revision), kvs=kvs, count=len(kvs)))

    def replayed(self) -> list[str]:
        return check_replay(self.operations, self.truth).wrong

    def searched(self) -> list[str]:
        return check_linearizable(self.operations)


def _header(revision: int) -> pb.ResponseHeader:
    return pb.ResponseHeader(revision=revision)


def _kv(key: str, value: str, create: int, mod: int, version: int = 1) -> pb.KeyValue:
    return pb.KeyValue(
        key=key.encode(), value=value.encode(), create_revision=create, mod_revision=mod, version=version
    )


def _delete(book: Book, span, key: str, deleted: int | None, revision: int = 0) -> Operation:
    answer = None if deleted is None else pb.DeleteRangeResponse(header=_header(revision), deleted=deleted)
    return book.add(span, pb.DeleteRangeRequest(key=key.encode()), answer)


def _put_both(book: Book, span, first: str, second: str, revision: int | None) -> Operation:
    """A txn that puts a and b."""
    puts = [pb.PutRequest(key=key, value=value.encode()) for key, value in ((b"a", first), (b"b", second))]
    request = pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts])
    answer = None
    if revision is not None:
        inner = [pb.ResponseOp(response_put=pb.PutResponse(header=_header(revision)))] * 2
        answer = pb.TxnResponse(header=_header(revision), succeeded=True, responses=inner)
    return book.add(span, request, answer)


def _get_both(book: Book, span, kvs: list[pb.KeyValue], revision: int) -> Operation:
    request = pb.RangeRequest(key=b"a", range_end=b"c")
    return book.add(span, request, pb.RangeResponse(header=_header(revision), kvs=kvs, count=len(kvs)))


def _is_wrong(book: Book, *words: str, search: bool | None = True) -> None:
    """Both verdicts say no, the first in these words. `search` None: the second cannot see this kind."""
    replayed = book.replayed()
    assert any(all(word in line for word in words) for line in replayed), replayed
    if search is not None:
        assert bool(book.searched()) is search, book.searched()


def test_a_plain_history_passes() -> None:
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "a", "2", create=2, version=2)
    book.put((0, 1), "a", "1", 2)
    book.get((2, 3), "a", _kv("a", "1", 2, 2), 2)
    book.put((4, 5), "a", "2", 3)
    book.get((6, 7), "a", _kv("a", "2", 2, 3, 2), 3)
    assert book.replayed() == book.searched() == []


def test_a_stale_read_is_seen() -> None:
    """K1: a linearizable read that began after a write was acknowledged must show it, at whichever member."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "a", "2", create=2, version=2)
    book.put((0, 1), "a", "1", 2)
    book.put((2, 3), "a", "2", 3)
    book.get((4, 5), "a", _kv("a", "1", 2, 2), 2)
    _is_wrong(book, "stale")


def test_a_read_stale_against_another_key_is_seen() -> None:
    """K1: real time holds across keys, which judging key by key cannot see."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "b", "2")
    book.put((0, 1), "a", "1", 2)
    book.put((2, 3), "b", "2", 3)
    book.get((4, 5), "a", _kv("a", "1", 2, 2), 2)
    _is_wrong(book, "stale", search=False)


def test_a_stale_serializable_read_is_allowed() -> None:
    """K8: possibly stale, but a state that was."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "a", "2", create=2, version=2)
    book.put((0, 1), "a", "1", 2)
    book.put((2, 3), "a", "2", 3)
    book.get((4, 5), "a", _kv("a", "1", 2, 2), 2, serializable=True)
    assert book.replayed() == book.searched() == []


def test_a_serializable_read_that_never_was_a_state_is_seen() -> None:
    """K7: what a read shows is the state at its header's revision."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "a", "2", create=2, version=2)
    book.put((0, 1), "a", "1", 2)
    book.put((2, 3), "a", "2", 3)
    book.get((4, 5), "a", _kv("a", "1", 2, 2), 3, serializable=True)
    _is_wrong(book, "should have been", search=None)


def test_what_a_serializable_read_has_shown_may_not_be_missed_afterwards() -> None:
    """K4: it was committed when it was shown, so a later linearizable read must show it too."""
    book = Book()
    book.event(2, "a", "1")
    book.put((0, 9), "a", "1", 2)
    book.get((1, 2), "a", _kv("a", "1", 2, 2), 2, serializable=True)
    book.get((3, 4), "a", None, 1)
    _is_wrong(book, "stale", search=None)


def test_a_lost_write_is_seen() -> None:
    """D1: acknowledged, and in no store."""
    book = Book()
    book.put((0, 1), "a", "1", 2)
    book.get((2, 3), "a", None, 1)
    _is_wrong(book, "lost")


def test_a_write_replaced_by_another_at_its_revision_is_seen() -> None:
    """K5: a revision is never used again."""
    book = Book()
    book.event(2, "a", "2")
    book.put((0, 1), "a", "1", 2)
    book.put((2, 3), "a", "2", 2)
    _is_wrong(book, "two writes", search=False)


def test_a_dirty_read_is_seen() -> None:
    """K4: a read showed what a crash then took back."""
    book = Book()
    book.put((0, None), "a", "1")
    book.get((1, 2), "a", _kv("a", "1", 2, 2), 2, serializable=True)
    book.get((3, 4), "a", None, 1)
    _is_wrong(book, "never came to be", search=None)


def test_a_request_applied_twice_is_seen() -> None:
    """K9: at most once, however often it was proposed."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "a", "1", create=2, version=2)
    book.put((0, 1), "a", "1", 2)
    book.get((2, 3), "a", _kv("a", "1", 2, 3, 2), 3)
    _is_wrong(book, "twice")


def test_a_delete_applied_twice_is_seen() -> None:
    """K9, where no value tells: one call, one revision."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "a", None)
    book.event(4, "a", "2")
    book.event(5, "a", None)
    book.put((0, 1), "a", "1", 2)
    _delete(book, (1.2, None), "a", None)
    book.get((1.5, 1.7), "a", None, 3)
    book.put((2, 3), "a", "2", 4)
    book.get((4, 5), "a", None, 5)
    _is_wrong(book, "no call explains revision 5")


def test_a_refused_request_that_took_effect_is_seen() -> None:
    """K10: a definite error means that nothing was done."""
    book = Book()
    book.event(2, "a", "1")
    book.put((0, 1), "a", "1", error=TooManyRequests())
    book.get((2, 3), "a", _kv("a", "1", 2, 2), 2)
    _is_wrong(book, "was refused")


def test_a_torn_txn_is_seen() -> None:
    """K2: all of a txn or nothing of it."""
    book = Book()
    book.event(2, "a", "1")
    book.event(2, "b", "2")
    _put_both(book, (0, 1), "1", "2", 2)
    _get_both(book, (2, 3), [_kv("a", "1", 2, 2)], 2)
    _is_wrong(book, "should have been")


def test_a_txn_torn_in_the_stores_is_seen() -> None:
    """K2: the same, when the stores lost half of it."""
    book = Book()
    book.event(2, "a", "1")
    _put_both(book, (0, 1), "1", "2", 2)
    _is_wrong(book, "not what its request asked for", search=False)


def test_writes_that_changed_places_are_seen() -> None:
    """K1: a write acknowledged before another was asked for has the lower revision."""
    book = Book()
    book.event(2, "a", "2")
    book.event(3, "a", "1", create=2, version=2)
    book.put((0, 1), "a", "1", 3)
    book.put((2, 3), "a", "2", 2)
    book.get((4, 5), "a", _kv("a", "1", 2, 3, 2), 3)
    _is_wrong(book, "stale")


def test_a_value_seen_before_it_was_asked_for_is_seen() -> None:
    """Cause before effect, even if the call was never answered."""
    book = Book()
    book.event(2, "a", "1")
    book.get((0, 1), "a", _kv("a", "1", 2, 2), 2)
    book.put((2, None), "a", "1")
    _is_wrong(book, "was seen before this call")


def test_an_unanswered_write_may_have_happened_or_not() -> None:
    """Unanswered is maybe, and stays maybe for ever."""
    for happened in (False, True):
        book = Book()
        book.put((0, None), "a", "1")
        book.put((0, 2), "a", "2", error=TimedOut())
        if happened:
            book.event(2, "a", "2")
            book.event(3, "a", "1", create=2, version=2)
            book.get((5, 6), "a", _kv("a", "2", 2, 2), 2)
            book.get((7, 8), "a", _kv("a", "1", 2, 3, 2), 3)
        else:
            book.get((5, 6), "a", None, 1)
        assert book.replayed() == book.searched() == []


def test_an_unanswered_write_may_not_come_and_go() -> None:
    """Maybe once is not twice: seen, missed, seen again."""
    book = Book()
    book.event(2, "a", "1")
    book.put((0, None), "a", "1")
    book.get((1, 2), "a", _kv("a", "1", 2, 2), 2)
    book.get((3, 4), "a", None, 1)
    book.get((5, 6), "a", _kv("a", "1", 2, 2), 2)
    _is_wrong(book, "stale")


def test_unanswered_deletes_are_told_apart_by_time() -> None:
    """Two deletes look alike; only the one that was called early enough can be the one that was seen."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "a", None)
    book.event(4, "a", "2")
    book.event(5, "a", None)
    book.put((0, 1), "a", "1", 2)
    _delete(book, (2, None), "a", None)
    book.get((3, 4), "a", None, 3)
    book.put((5, 6), "a", "2", 4)
    _delete(book, (7, None), "a", None)
    book.get((8, 9), "a", None, 5)
    assert book.replayed() == book.searched() == []
    book.operations[4].called = 9.5
    _is_wrong(book, "no call explains revision 5")


def test_two_cas_on_the_same_revision_cannot_both_win() -> None:
    """Compare and swap is one step."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "a", "2", create=2, version=2)
    book.event(4, "a", "3", create=2, version=3)
    book.put((0, 1), "a", "1", 2)
    for at, revision in ((2, 3), (4, 4)):
        put = pb.PutRequest(key=b"a", value=str(at // 2 + 1).encode())
        compare = pb.Compare(key=b"a", target=pb.Compare.MOD, mod_revision=2)
        request = pb.TxnRequest(compare=[compare], success=[pb.RequestOp(request_put=put)])
        inner = pb.ResponseOp(response_put=pb.PutResponse(header=_header(revision)))
        book.add((at, at + 1), request, pb.TxnResponse(header=_header(revision), succeeded=True, responses=[inner]))
    _is_wrong(book, "should have been")


def test_answers_that_were_mixed_up_are_seen() -> None:
    """T5: one answer off in a batch, client A is told what B should hear."""
    book = Book()
    book.event(2, "a", "1")
    book.event(3, "b", "2")
    book.put((0, 1), "a", "1", 3)
    book.put((0, 1), "b", "2", 2)
    _is_wrong(book, "not what its request asked for", search=False)


def test_a_delete_that_says_nothing_was_there_is_seen() -> None:
    """The count of a delete is an answer like any other."""
    book = Book()
    book.event(2, "a", "1")
    book.put((0, 1), "a", "1", 2)
    _delete(book, (2, 3), "a", 0, 2)
    _is_wrong(book, "should have been")


def test_a_read_of_the_past_is_the_state_of_then() -> None:
    """K8: reads at a revision are the same for ever."""
    for right in (True, False):
        book = Book()
        book.event(2, "a", "1")
        book.event(3, "a", "2", create=2, version=2)
        book.put((0, 1), "a", "1", 2)
        book.put((2, 3), "a", "2", 3)
        found = _kv("a", "1", 2, 2) if right else _kv("a", "2", 2, 3, 2)
        answer = pb.RangeResponse(header=_header(3), kvs=[found], count=1)
        book.add((4, 5), pb.RangeRequest(key=b"a", revision=2), answer)
        assert bool(book.replayed()) is not right
        assert book.searched() == []


def test_a_member_that_calls_the_present_future_is_seen() -> None:
    """K1: a linearizable read of a revision that somebody was told of cannot be refused as a future one."""
    for serializable in (True, False):
        book = Book()
        book.event(2, "a", "1")
        book.put((0, 1), "a", "1", 2)
        book.add((2, 3), pb.RangeRequest(key=b"a", revision=2, serializable=serializable), error=FutureRevision())
        assert bool(book.replayed()) is not serializable


def test_a_hole_in_the_revisions_is_seen() -> None:
    """K5: plus one each."""
    book = Book()
    book.event(3, "a", "1")
    book.put((0, 1), "a", "1", 3)
    assert book.replayed() == ["revisions are missing between 2 and 3"]


# ---- histories by a toy server


class Toy:
    """A linearizable server: every operation has one instant of effect inside its interval."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.state: dict[bytes, Pair] = {}
        self.revision = 1
        self.truth: dict[int, list[pb.Event]] = {}
        self.values = 0

    def history(self, length: int, clients: int, keys: int) -> list[Operation]:
        rng, pending, operations = self.rng, [], []
        for client in range(clients):
            now = 0.0
            for _ in range(length // clients):
                called = now + rng.random()
                now = called + rng.random() * 2
                op = Operation(0, client, 1, called, self._request(keys), now)
                operations.append(op)
                instant = rng.uniform(called, now)
                fate = rng.random()
                if fate < 0.1:
                    op.returned, instant = None, rng.uniform(called, called + 8)
                    if fate < 0.05:
                        continue  # never happens
                elif fate < 0.15:
                    op.error = TooManyRequests()
                    continue
                pending.append((instant, len(operations), op))
        for _, _, op in sorted(pending, key=lambda each: each[:2]):
            answer = self.do(op.request)
            if op.returned is not None:
                op.answer = answer
        operations.sort(key=lambda op: op.called)
        for at, op in enumerate(operations):
            op.id = at
        return operations

    def _request(self, keys: int) -> Request:
        rng = self.rng
        key = b"k%d" % rng.randrange(keys)
        kind = rng.random()
        if kind < 0.4:
            return pb.RangeRequest(key=key)
        if kind < 0.5:
            return pb.DeleteRangeRequest(key=key, prev_kv=True)
        if kind < 0.75:
            return pb.PutRequest(key=key, value=self._value(), prev_kv=rng.random() < 0.5)
        found = self.state.get(key)
        compare = pb.Compare(key=key, target=pb.Compare.MOD, mod_revision=found.mod if found else 0)
        other = b"k%d" % rng.randrange(keys)
        puts = [pb.PutRequest(key=one, value=self._value()) for one in {key: 0, other: 0}]
        success = [pb.RequestOp(request_put=put) for put in puts]
        failure = [pb.RequestOp(request_range=pb.RangeRequest(key=key))]
        return pb.TxnRequest(compare=[compare], success=success, failure=failure)

    def _value(self) -> bytes:
        self.values += 1
        return b"v%d" % self.values

    def do(self, request: Request):
        said, changes = execute(self.state, request, self.revision + 1)
        if changes:
            self.revision += 1
            self.truth[self.revision] = events = []
            for key, pair in changes.items():
                if pair is None:
                    self.state.pop(key)
                    kv = pb.KeyValue(key=key, mod_revision=self.revision)
                    events.append(pb.Event(type=pb.Event.DELETE, kv=kv))
                else:
                    self.state[key] = pair
                    events.append(pb.Event(kv=_wire(pair)))
        return _answer(said, self.revision)


def _wire(pair: Pair) -> pb.KeyValue:
    return _kv(pair.key.decode(), pair.value.decode(), pair.create, pair.mod, pair.version)


def _answer(said, revision: int):
    header = _header(revision)
    if said[0] == "put":
        return pb.PutResponse(header=header, prev_kv=_wire(said[1]) if said[1] else None)
    if said[0] == "range":
        return pb.RangeResponse(header=header, count=said[1], more=said[2], kvs=map(_wire, said[3]))
    if said[0] == "delete":
        return pb.DeleteRangeResponse(header=header, deleted=said[1], prev_kvs=map(_wire, said[2]))
    inner = []
    for one in said[2]:
        answer = _answer(one, revision)
        name = {pb.PutResponse: "response_put", pb.RangeResponse: "response_range"}[type(answer)]
        inner.append(pb.ResponseOp(**{name: answer}))
    return pb.TxnResponse(header=header, succeeded=said[1], responses=inner)


@pytest.mark.parametrize("seed", range(40))
def test_right_histories_pass_both_verdicts(seed: int) -> None:
    """No false alarms: concurrency, maybes, refusals, deletes, CAS over two keys."""
    toy = Toy(seed)
    history = toy.history(length=80, clients=4, keys=3)
    verdict = check_replay(history, toy.truth)
    assert verdict.wrong == []
    assert check_linearizable(history, happened=verdict.happened) == []
    try:
        assert check_linearizable(history, budget=100_000) == []
    except Undecided:
        assert sum(op.maybe for op in history) > 4


class StaleToy(Toy):
    """Some reads see the state as it was a few operations ago."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.old: list[tuple[dict[bytes, Pair], int]] = []

    def do(self, request: Request):
        self.old.append((dict(self.state), self.revision))
        if isinstance(request, pb.RangeRequest) and self.rng.random() < 0.3:
            state, revision = self.old[-6:][0]
            return _answer(execute(state, request, 0)[0], revision)
        return super().do(request)


class ForgetfulToy(Toy):
    """Some writes are answered and not done."""

    def do(self, request: Request):
        if isinstance(request, pb.PutRequest) and self.rng.random() < 0.4:
            return _answer(execute(self.state, request, self.revision + 1)[0], self.revision + 1)
        return super().do(request)


class StutteringToy(Toy):
    """Some writes are done twice."""

    def do(self, request: Request):
        if isinstance(request, pb.PutRequest) and self.rng.random() < 0.4:
            super().do(request)
        return super().do(request)


@pytest.mark.parametrize("toy_class", [StaleToy, ForgetfulToy, StutteringToy])
def test_wrong_servers_fail_both_verdicts(toy_class: type[Toy]) -> None:
    """Violations inside concurrent histories with maybes, where nobody has arranged them for the judge."""
    replayed = searched = 0
    for seed in range(20):
        toy = toy_class(seed)
        history = toy.history(length=80, clients=4, keys=3)
        verdict = check_replay(history, toy.truth)
        replayed += bool(verdict.wrong)
        searched += bool(check_linearizable(history, happened=verdict.happened))
    assert replayed == 20
    assert searched >= 15


def test_the_search_says_so_when_it_gives_up() -> None:
    """An undecided history is never called right."""
    book = Book()
    for at in range(14):
        book.put((0, None), "a", f"{at}")
    book.get((20, 21), "a", _kv("a", "none of these", 2, 99, 15), 99)
    with pytest.raises(Undecided):
        check_linearizable(book.operations, budget=1000)
    assert check_linearizable(book.operations, happened={}) != []


def test_the_model_does_not_pass_what_it_does_not_understand() -> None:
    """A sorted range has no canonical answer here."""
    with pytest.raises(Unjudged):
        execute({}, pb.RangeRequest(key=b"a", sort_order=pb.RangeRequest.DESCEND), 2)


def test_the_model_decides_nested_txns_before_it_runs_any() -> None:
    """api.md 6.4: all comparisons look at the state before the outermost txn."""
    exists = pb.Compare(key=b"a", target=pb.Compare.VERSION, version=1)
    inner = pb.TxnRequest(compare=[exists], success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))])
    put = pb.RequestOp(request_put=pb.PutRequest(key=b"a", value=b"1"))
    outer = pb.TxnRequest(success=[put, pb.RequestOp(request_txn=inner)])
    assert execute({}, outer, 2)[0] == ("txn", True, (("put", None), ("txn", False, ())))


@pytest.mark.parametrize(
    ("relation", "value", "expected"),
    [
        (pb.Compare.EQUAL, b"1", True),
        (pb.Compare.NOT_EQUAL, b"1", False),
        (pb.Compare.GREATER, b"0", True),
        (pb.Compare.LESS, b"0", False),
    ],
)
def test_the_model_compares_values_bytewise(relation: int, value: bytes, expected: bool) -> None:
    """api.md 6.4; and whatever the operator, a missing key's value compares false."""
    compare = pb.Compare(key=b"a", target=pb.Compare.VALUE, value=value, result=relation)
    request = pb.TxnRequest(compare=[compare])
    assert execute({b"a": Pair(b"a", b"1", 2, 2, 1)}, request, 3)[0] == ("txn", expected, ())
    assert execute({}, request, 3)[0] == ("txn", False, ())
