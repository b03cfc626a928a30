"""The synchronous client against fake nodes over real ZeroMQ: what it sends, what it survives, what it says."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

import kvorum
from kvorum import errors, verbs, wire
from kvorum import etcd_pb2 as pb
from kvorum.core import Call
from kvorum.txn import get, put, value, version
from kvorum.wire import Kind, Method, Record
from tests.client.fake import FakeNode, Store

Start = Callable[..., FakeNode]


def silent(_: Record) -> None:
    """A node that takes everything and answers nothing."""


# ---- the verbs, by python-etcd3's habits


def test_put_get_delete(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        assert client.get("k") == (None, None)
        assert client.put("k", "v").header.revision == 2
        found, meta = client.get(b"k")
        assert found == b"v"
        assert meta is not None
        assert (meta.key, meta.create_revision, meta.mod_revision, meta.version, meta.lease_id) == (b"k", 2, 2, 1, 0)
        assert meta.response_header.revision == 2
        assert client.put("k", b"\xff\0", prev_kv=True).prev_kv.value == b"v"
        assert client.delete("k") is True
        assert client.delete("k") is False
        answer = client.delete("k", return_response=True)
        assert isinstance(answer, pb.DeleteRangeResponse)
        assert answer.deleted == 0


def test_prefixes_and_ranges(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        for key in ("a/1", "a/2", "b/1"):
            client.put(key, key.upper())
        assert [found for found, _ in client.get_prefix("a/")] == [b"A/1", b"A/2"]
        assert [meta.key for _, meta in client.get_range("a/2", "c")] == [b"a/2", b"b/1"]
        assert len(client.get_all()) == 3
        assert client.get_prefix_response("", limit=2).more
        assert client.get_prefix_response("a/", count_only=True).count == 2
        assert [found for found, _ in client.get_prefix("a/", sort_order="descend")] == [b"A/2", b"A/1"]
        assert client.delete_prefix("a/", prev_kv=True).deleted == 2
        assert client.delete_range("b", b"\0").deleted == 1
        assert client.get_all() == []


def test_conditional_puts(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        assert client.put_if_not_exists("k", "1") is True
        assert client.put_if_not_exists("k", "2") is False
        assert client.replace("k", "2", "3") is False
        assert client.replace("k", "1", "3") is True
        assert client.get("k")[0] == b"3"


def test_transactions_in_both_spellings(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        client.put("seat", "free")
        t = client.transactions
        ok, answers = client.transaction(
            compare=[t.value("seat") == "free", t.version("seat") > 0],
            success=[t.put("seat", "ada"), t.get("seat"), t.delete("none"), t.txn(success=[t.get("seat")])],
            failure=[t.get("seat")],
        )
        assert ok
        assert isinstance(answers[0], pb.PutResponse)
        assert answers[1][0][0] == b"ada"  # type: ignore[index]
        assert isinstance(answers[2], pb.DeleteRangeResponse)
        assert answers[3][0] is True  # type: ignore[index]
        assert answers[3][1][0][0][0] == b"ada"  # type: ignore[index]
        again = client.txn().if_(value("seat") == "free", version("seat") != 0).then(put("seat", "bob"))
        ok, answers = again.else_(get("seat")).commit()
        assert (ok, answers[0][0][0]) == (False, b"ada")  # type: ignore[index]


def test_status_members_compaction_and_hello(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        status = client.status()
        assert (status.version, status.leader, status.db_size, status.raft_applied_index) == ("3.6.0", 0xA1, 24576, 11)
        first, second = client.members
        assert (first.id, first.name, first.client_urls) == (0xA1, "node1", ("http://a:2379",))
        assert second.is_learner
        client.compact(1, physical=True)
        assert node.store.compacted == 1
        assert client.hello().members[0].native == node.address


@pytest.mark.parametrize(
    ("method", "args", "options", "error"),
    [
        ("put", ("k", 5), {}, TypeError),
        ("put", (None, "v"), {}, TypeError),
        ("put", ("k", "v"), {"lease": "x"}, TypeError),
        ("get", ("k",), {"limit": -1}, ValueError),
        ("get", ("k",), {"revision": -1}, ValueError),
        ("get", ("k",), {"revision": 2**63}, ValueError),
        ("get", ("k",), {"sort_order": "up"}, ValueError),
        ("get", ("k",), {"sort_target": "size"}, ValueError),
        ("get", ("k",), {"no_such": 1}, TypeError),
        ("get", ("k",), {"timeout": 0}, ValueError),
        ("get", ("k",), {"timeout": float("nan")}, ValueError),
        ("compact", ("x",), {}, TypeError),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(
    node: FakeNode, method: str, args: tuple[object, ...], options: dict[str, object], error: type[Exception]
) -> None:
    with kvorum.client(node.address) as client:
        with pytest.raises(error):
            getattr(client, method)(*args, **options)
        assert node.batches == []


def test_a_refusal_is_raised_as_what_it_is(start: Start) -> None:
    node = start(lambda _: errors.Compacted())
    with kvorum.client(node.address) as client, pytest.raises(errors.Compacted) as raised:
        client.get("k", revision=1)
    assert isinstance(raised.value, kvorum.Refused)


def test_an_answer_that_is_no_answer_leaves_open_what_was_done(start: Start) -> None:
    node = start(lambda _: b"\xff\xff\xff")
    with kvorum.client(node.address) as client, pytest.raises(kvorum.Ambiguous, match="not a PutResponse"):
        client.put("k", "v")


# ---- nodes that go


def test_a_client_starts_elsewhere_if_an_endpoint_is_not_there(node: FakeNode) -> None:
    with kvorum.client(["127.0.0.1:1", node.address], shuffle=False) as client:
        client.put("k", "v")


def test_nobody_there_is_said_with_the_reason_and_nothing_was_done() -> None:
    with kvorum.client("127.0.0.1:1", timeout=0.2) as client, pytest.raises(errors.Unreachable, match="refused"):
        client.put("k", "v")


def test_a_port_that_speaks_something_else_is_said_so() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def greet() -> None:
            for _ in range(2):
                peer, _ = listener.accept()
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
                peer.close()

        thread = threading.Thread(target=greet)
        thread.start()
        with (
            kvorum.client(f"127.0.0.1:{port}", timeout=0.6) as client,
            pytest.raises(errors.Unreachable, match="does not speak ZeroMQ"),
        ):
            client.get("k")
        thread.join()


def test_a_client_goes_on_at_another_node_when_its_own_goes(start: Start) -> None:
    store = Store()
    first, second = start(store), start(store)
    with kvorum.client([first.address, second.address], shuffle=False) as client:
        client.put("k", "1")
        first.close()
        time.sleep(0.05)
        assert client.get("k")[0] == b"1"
        client.put("k", "2")
        assert len(second.batches) == 2


def test_it_learns_of_other_nodes_by_itself(start: Start) -> None:
    """One endpoint in the configuration is enough to use them all."""
    store = Store()
    first, second = start(store), start(store)
    first.members = [second.endpoint]
    with kvorum.client(first.address) as client:
        client.put("k", "1")
        first.close()
        time.sleep(0.05)
        assert client.get("k")[0] == b"1"


def test_a_write_under_way_when_its_node_goes_is_ambiguous_and_a_read_is_asked_again(start: Start) -> None:
    store = Store()
    first, second = start(silent), start(store)
    with kvorum.client([first.address, second.address], shuffle=False, timeout=5) as client:
        with client.pipeline() as pipe:
            write, read = pipe.put("k", "v"), pipe.get("k")
            client.drive(0.2)
            assert sum(len(batch) for batch in first.batches) == 2
            first.close()
            with pytest.raises(errors.ConnectionLost):
                write.result()
            assert read.result() == (None, None)
        assert [record.method for batch in second.batches for record in batch] == [Method.RANGE]


def test_a_node_comes_back_on_its_port(start: Start) -> None:
    store = Store()
    node = start(store)
    with kvorum.client(node.address, timeout=5) as client:
        client.put("k", "1")
        node.close()
        start(store, address=node.address)
        for _ in range(20):
            try:
                client.put("k", "2")
                break
            except kvorum.Ambiguous:  # it left before we heard that the node was gone
                continue
        assert client.get("k")[0] == b"2"


def test_a_stopped_node_is_left() -> None:
    """SIGSTOP closes no connection: ZeroMQ's heartbeats find it, in time for a read to be asked elsewhere."""
    script = "from tests.client.fake import *; n = FakeNode(); print(n.address, flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with FakeNode() as other, kvorum.client([address, other.address], shuffle=False, timeout=20) as client:
                client.put("k", "v")
                process.send_signal(signal.SIGSTOP)
                os.waitpid(process.pid, os.WUNTRACED)  # each of its threads runs on until it notices
                assert client.get("k") == (None, None)  # well before its deadline, else it would raise
        finally:
            process.kill()


# ---- time


def test_a_write_without_an_answer_is_ambiguous_after_its_timeout(start: Start) -> None:
    node = start(silent)
    with kvorum.client(node.address, timeout=30) as client:
        begun = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            client.put("k", "v", timeout=0.1)
        assert 0.1 <= time.monotonic() - begun < 10, "the call's own timeout counts, not the client's"


def test_an_answer_after_the_deadline_disturbs_nobody(start: Start) -> None:
    node = start(silent)
    with kvorum.client(node.address) as client:
        with pytest.raises(errors.DeadlineExceeded):
            client.put("k", "v", timeout=0.05)
        ((late,),) = node.batches
        node.handle = node.store
        node.push(wire.encode(late.method, Kind.REPLY, 0, late.id, b""))
        assert client.get("k") == (None, None)


# ---- garbage


@pytest.mark.parametrize(
    "message",
    [[b"junk"], [b"x" * 15], [b"two", b"frames"], [wire.encode(Method.PUT, Kind.STREAM_MESSAGE, 0, 2, b"")]],
    ids=["junk", "short", "two frames", "a stream"],
)
def test_garbage_ends_the_connection_and_the_client_goes_on(node: FakeNode, message: list[bytes]) -> None:
    node.raw.append(message)
    with kvorum.client(node.address, timeout=5) as client:
        with pytest.raises(errors.ConnectionLost):
            client.put("k", "v")
        assert client.get("k") == (None, None)


def test_an_empty_frame_is_no_garbage(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        client.put("k", "1")
        peers = len(node.peers)
        node.push(b"")
        client.put("k", "2")
        assert len(node.peers) == peers


# ---- many calls


def test_a_pipeline_leaves_in_one_batch(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        client.put("warm", "up")
        with client.pipeline() as pipe:
            answers = [pipe.put(f"k{i}", "v") for i in range(1000)]
            last = pipe.get("k999")
        assert last.result()[0] == b"v"
        assert [answer.result().header.revision for answer in answers] == list(range(3, 1003))
        assert [len(batch) for batch in node.batches] == [1, 1001]


def test_a_pipeline_waits_before_it_holds_too_much(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.pipeline.WINDOW", 10)
    with kvorum.client(node.address) as client:
        with client.pipeline() as pipe:
            for i in range(100):
                pipe.put(f"k{i}", "v")
                assert client.inflight <= 10
        assert len(client.get_all()) == 100


def test_an_error_in_a_pipeline_that_nobody_looked_at_is_raised_at_its_end(start: Start) -> None:
    node = start(lambda _: errors.EmptyKey())
    with kvorum.client(node.address) as client:
        with pytest.raises(errors.EmptyKey), client.pipeline() as pipe:
            pipe.put("", "v")
        with client.pipeline() as pipe:
            looked_at = pipe.put("", "v")
            with pytest.raises(errors.EmptyKey):
                looked_at.result()


def test_submit_and_drive_keep_a_window_of_calls_in_flight(node: FakeNode) -> None:
    request = verbs.put("k", "v").request
    with kvorum.client(node.address) as client:
        left = 2000
        failed: list[Call] = []

        def done(call: Call) -> None:
            nonlocal left
            if call.error is not None:
                failed.append(call)
            if left:
                left -= 1
                client.submit(Method.PUT, request, done)

        for _ in range(64):
            client.submit(Method.PUT, request, done)
        while client.inflight:
            client.drive(1.0)
        assert (left, failed) == (0, [])
        assert node.store.revision == 1 + 2064
        assert max(len(batch) for batch in node.batches) <= 64


def test_drive_returns_when_its_time_is_up(start: Start) -> None:
    node = start(silent)
    with kvorum.client(node.address) as client:
        assert client.drive() == 0
        client.submit(Method.PUT, b"", timeout=9)
        begun = time.monotonic()
        assert client.drive(0.1) == 0
        assert 0.1 <= time.monotonic() - begun < 5, "not when the call's time is up"


def test_what_is_submitted_has_a_bound(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """No queue grows without a bound."""
    monkeypatch.setattr("kvorum.sync.SUBMITTED_MAX", 10)
    node = start(silent)
    with kvorum.client(node.address) as client:
        for _ in range(10):
            client.submit(Method.PUT, b"")
        with pytest.raises(errors.Unavailable, match="too many"):
            client.submit(Method.PUT, b"")


def test_a_callback_that_raises_is_heard_and_harms_no_other_call(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:

        def bad(_: Call) -> None:
            raise ZeroDivisionError

        client.submit(Method.PUT, verbs.put("a", "1").request, bad)
        other = client.submit(Method.PUT, verbs.put("b", "2").request)
        with pytest.raises(ZeroDivisionError):
            client.wait(other)
        client.wait(other)
        assert other.error is None


def test_a_callback_that_waits_for_a_call_is_told_so(node: FakeNode) -> None:
    with kvorum.client(node.address) as client:
        client.submit(Method.PUT, verbs.put("a", "1").request, lambda _: client.put("b", "2") and None)
        with pytest.raises(RuntimeError, match="wait for itself"):
            client.drive(5.0)


# ---- threads


def test_threads_share_a_connection_and_their_calls_leave_together(start: Start) -> None:
    """Calls issued while others are under way leave as one batch, and everyone gets their own answer."""
    gate = threading.Event()
    store = Store()

    def slow(record: Record) -> object:
        gate.wait(5)
        return store(record)

    node = start(slow)
    with kvorum.client(node.address) as client:
        client.hello()
        failures: list[BaseException] = []

        def work(name: str) -> None:
            try:
                for i in range(20):
                    client.put(f"{name}/{i}", f"{name}{i}")
                    assert client.get(f"{name}/{i}")[0] == f"{name}{i}".encode()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        gate.set()
        for thread in threads:
            thread.join(20)
        assert failures == []
        assert len(node.peers) == 1
        assert len(client.get_all()) == 16 * 20
        sizes = [len(batch) for batch in node.batches]
        assert sum(sizes) == 16 * 40 + 1
        assert max(sizes) > 4, "nothing was coalesced"


def test_the_thread_that_serves_hands_over_when_its_own_call_is_done(start: Start) -> None:
    """The first caller's answer comes at once, the others' later: somebody must go on listening."""
    store = Store()
    held: list[Record] = []

    def some(record: Record) -> object:
        if record.payload == verbs.get("quick").request:
            return store(record)
        held.append(record)
        return None

    node = start(some)
    with kvorum.client(node.address) as client:
        client.hello()
        results: list[object] = []
        slow = [threading.Thread(target=lambda i=i: results.append(client.get(f"slow{i}"))) for i in range(5)]
        for thread in slow:
            thread.start()
        while len(held) < 5:
            time.sleep(0.005)
        assert client.get("quick") == (None, None)
        for record in held:
            node.push(wire.encode(record.method, Kind.REPLY, 0, record.id, b""))
        for thread in slow:
            thread.join(5)
        assert results == [(None, None)] * 5


def test_each_thread_has_its_own_deadline(start: Start) -> None:
    node = start(silent)
    with kvorum.client(node.address) as client:
        client.hello()
        took: dict[float, float] = {}

        def wait(timeout: float) -> None:
            begun = time.monotonic()
            with pytest.raises(errors.DeadlineExceeded):
                client.put("k", "v", timeout=timeout)
            took[timeout] = time.monotonic() - begun

        threads = [threading.Thread(target=wait, args=(timeout,)) for timeout in (0.5, 0.1, 0.3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert all(timeout <= spent for timeout, spent in took.items()), took
        assert list(took) == [0.1, 0.3, 0.5], "they ended in the order of their deadlines"


def test_closing_in_another_thread_ends_the_calls_under_way(start: Start) -> None:
    node = start(silent)
    client = kvorum.client(node.address, timeout=30)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            client.put("k", "v")
        except errors.KvorumError as error:
            ended.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    while sum(len(batch) for batch in node.batches) < 3:
        time.sleep(0.005)
    client.close()
    for thread in threads:
        thread.join(5)
    assert [type(error) for error in ended] == [errors.ConnectionLost] * 3


# ---- its end


def test_a_closed_client_says_so(node: FakeNode) -> None:
    client = kvorum.client(node.address)
    client.put("k", "v")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get("k")


def test_clients_leave_no_file_descriptor_behind(node: FakeNode) -> None:
    def use() -> None:
        with kvorum.client(["127.0.0.1:1", node.address], shuffle=False) as client:
            client.put("k", "v")
            events, cancel = client.watch("k")
            client.put("k", "w")
            assert next(events).value == b"w"
            cancel()

    use()  # what is made once for all clients
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        use()
    gc.collect()
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)  # ZeroMQ closes in its own thread
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_forgotten_client_is_collected(node: FakeNode) -> None:
    """Without close(), the connection goes with the object."""
    client = kvorum.client(node.address)
    client.put("k", "v")
    before = len(os.listdir("/proc/self/fd"))
    del client
    gc.collect()
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) >= before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) < before


def test_a_forked_child_must_make_its_own_client(node: FakeNode) -> None:
    """ZeroMQ's threads are not in the child; using the parent's client there would hang."""
    with kvorum.client(node.address) as client:
        client.put("k", "v")
        pid = os.fork()
        if pid == 0:
            try:
                client.get("k")
            except RuntimeError as error:
                os._exit(7 if "forked" in str(error) else 1)
            os._exit(2)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert client.get("k")[0] == b"v"
