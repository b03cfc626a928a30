"""The recipes on a real cluster, several processes' worth of clients at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

import kvorum
from kvorum import errors, txn
from kvorum.recipes import (
    Barrier,
    Counter,
    DoubleBarrier,
    Election,
    Lock,
    LockLost,
    NotLeading,
    Service,
    View,
)
from tests.system.cluster import Cluster, eventually

WAIT = 60.0


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("recipes"), shared=True) as cluster:
        yield cluster


@pytest.fixture
def clients(trio: Cluster) -> Iterator[list[kvorum.Client]]:
    """One for each node, as if in processes of their own."""
    trio.await_ready()
    made = [kvorum.client(endpoint, discover=False, timeout=30) for endpoint in trio.endpoints]
    yield made
    for client in made:
        client.close()


def together(*works: object) -> None:
    """Run all of them in threads; what one raises is raised."""
    wrong: list[BaseException] = []

    def run(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT * 2)
        assert not thread.is_alive(), "somebody waits for ever"
    if wrong:
        raise wrong[0]


# ---- lock


def test_one_holder_at_a_time_and_tokens_that_grow(clients: list[kvorum.Client]) -> None:
    inside: list[int] = []
    tokens: list[int] = []

    def work(client: kvorum.Client) -> None:
        for _ in range(4):
            with Lock(client, "locks/one", ttl=10) as lock:
                inside.append(1)
                assert len(inside) == 1
                tokens.append(lock.token)
                time.sleep(0.01)
                inside.pop()

    together(*(lambda client=client: work(client) for client in clients))
    assert len(tokens) == 12
    assert tokens == sorted(set(tokens))
    assert not clients[0].get_prefix("locks/one/")
    assert not clients[0].leases()


def test_whoever_does_not_get_it_in_time_has_left_the_line(clients: list[kvorum.Client]) -> None:
    with Lock(clients[0], "locks/busy", ttl=10) as held:
        assert not Lock(clients[1], "locks/busy", ttl=10).acquire(timeout=0)
        assert not Lock(clients[1], "locks/busy", ttl=10).acquire(timeout=0.3)
        assert len(clients[0].get_prefix("locks/busy/")) == 1
        held.check()
    assert Lock(clients[1], "locks/busy", ttl=10).acquire(timeout=WAIT)


def test_a_dead_holder_is_followed_when_its_time_is_up(clients: list[kvorum.Client], trio: Cluster) -> None:
    dying = kvorum.client(trio.endpoints[0], discover=False, timeout=30)
    assert Lock(dying, "locks/dead", ttl=2).acquire()
    dying.close()
    with Lock(clients[1], "locks/dead", ttl=10) as lock:
        assert lock.is_acquired()


def test_a_holder_whose_lease_ended_is_fenced_off(clients: list[kvorum.Client]) -> None:
    """RELIABILITY 1.3: no lock keeps a paused holder from acting; the condition in its write does."""
    first = clients[0].lease(2)
    paused = Lock(clients[0], "locks/fenced", lease=first)
    paused.acquire()
    first.let_go()  # as if the process stood still
    with Lock(clients[1], "locks/fenced", ttl=10) as second:
        assert second.token > paused.token
        wrote, _ = clients[1].transaction([second.held], [txn.put("report", "of the second")])
        assert wrote
        wrote, _ = clients[0].transaction([paused.held], [txn.put("report", "of the first")])
        assert not wrote
        with pytest.raises(LockLost):
            paused.check()
    assert not paused.release()
    assert clients[0].get("report")[0] == b"of the second"


def test_a_lease_that_ends_in_the_line_is_no_lock(clients: list[kvorum.Client]) -> None:
    """Jepsen found etcd 3.4.3 to hand it over all the same."""
    lease = clients[1].lease(2)
    with Lock(clients[0], "locks/late", ttl=10):
        lease.let_go()
        with pytest.raises(LockLost):
            Lock(clients[1], "locks/late", lease=lease).acquire(timeout=WAIT)


# ---- election


def test_one_leads_at_a_time_and_everybody_sees_who(clients: list[kvorum.Client]) -> None:
    seen: list[bytes] = []
    watched = threading.Event()

    def watch() -> None:
        for leader in Election(clients[2], "elections/one").observe():
            seen.append(leader.value)
            watched.set()
            if leader.value == b"last":
                return

    observer = threading.Thread(target=watch, daemon=True)
    observer.start()
    with (
        Election(clients[0], "elections/one", ttl=10) as first,
        Election(clients[1], "elections/one", ttl=10) as second,
    ):
        assert first.campaign("ada")
        assert watched.wait(WAIT)
        assert not second.campaign("bob", timeout=0.3)
        leader = second.leader()
        assert leader is not None
        assert (leader.value, leader.token) == (b"ada", first.token)
        first.proclaim("ada!")
        winner = threading.Thread(target=second.campaign, args=("bob",))
        winner.start()
        first.resign()
        winner.join(WAIT)
        assert second.leads
        assert not first.leads
        with pytest.raises(NotLeading):
            first.proclaim("still me")
        done, _ = clients[1].transaction([second.mandate], [txn.put("decree", "by bob")])
        assert done
        eventually(lambda: b"bob" in seen, WAIT, "bob was seen to lead")
        second.proclaim("last")
        observer.join(WAIT)
    assert seen[0] == b"ada"
    assert seen[-1] == b"last"
    assert Election(clients[0], "elections/one").leader() is None


def test_a_leader_that_died_is_followed(clients: list[kvorum.Client], trio: Cluster) -> None:
    dying = kvorum.client(trio.endpoints[0], discover=False, timeout=30)
    Election(dying, "elections/dead", ttl=2).campaign("gone")
    dying.close()
    with Election(clients[1], "elections/dead", ttl=10) as election:
        assert election.campaign("next", timeout=WAIT)


# ---- the others


def test_a_barrier_lets_all_go_at_once(clients: list[kvorum.Client]) -> None:
    barrier = Barrier(clients[0], "barriers/one")
    assert barrier.wait(timeout=WAIT), "nobody holds it"
    assert barrier.hold()
    assert not barrier.hold()
    assert not Barrier(clients[1], "barriers/one").wait(timeout=0.2)
    through: list[bool] = []
    waiters = [
        threading.Thread(target=lambda client=client: through.append(Barrier(client, "barriers/one").wait(WAIT)))
        for client in clients
    ]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.1)
    assert not through
    barrier.release()
    for waiter in waiters:
        waiter.join(WAIT)
    assert through == [True] * 3


def test_a_double_barrier_begins_and_ends_together(clients: list[kvorum.Client]) -> None:
    entered: list[int] = []
    left: list[int] = []

    def work(number: int, client: kvorum.Client) -> None:
        with client.lease(10) as lease:
            barrier = DoubleBarrier(client, "barriers/two", 3, lease)
            time.sleep(0.1 * number)
            entered.append(number)
            assert barrier.enter(WAIT)
            assert len(entered) == 3
            time.sleep(0.1 * number)
            left.append(number)
            assert barrier.leave(WAIT)
            assert len(left) == 3

    together(*(lambda n=n, client=client: work(n, client) for n, client in enumerate(clients)))


def test_too_few_do_not_begin(clients: list[kvorum.Client]) -> None:
    with clients[0].lease(10) as lease:
        assert not DoubleBarrier(clients[0], "barriers/few", 2, lease).enter(timeout=0.3)


def test_nobody_miscounts(clients: list[kvorum.Client]) -> None:
    together(*(lambda client=client: [Counter(client, "counter").add() for _ in range(30)] for client in clients))
    assert Counter(clients[0], "counter").value == 90
    assert Counter(clients[0], "counter").add(-90) == 0


def test_a_view_is_what_the_cluster_has(clients: list[kvorum.Client]) -> None:
    clients[0].put("config/color", "blue")
    heard: list[dict[bytes, bytes | None]] = []
    with View(clients[1], "config/", on_change=heard.append) as view:
        assert dict(view) == {b"color": b"blue"}
        assert heard == []
        clients[0].transaction([], [txn.put("config/color", "red"), txn.put("config/size", "4")])
        last = clients[0].delete("config/size", return_response=True)
        assert view.wait(last.header.revision, WAIT)  # type: ignore[union-attr]
        assert dict(view) == {b"color": b"red"}
        assert view["color"] == b"red"
        assert heard[-1] == {b"size": None}
        assert {b"color": b"red", b"size": b"4"} in heard
        meta = view.meta("color")
        assert meta is not None
        assert meta.version == 2
        assert not view.wait_for(lambda now: b"never" in now, 0.1)


def test_a_view_that_a_compaction_overtook_reads_anew(clients: list[kvorum.Client], trio: Cluster) -> None:
    clients[0].put("view/a", "1")
    with View(clients[1], "view/") as view:
        trio.kill(1, "watch")
        for number in range(20):
            last = clients[0].put("view/a", str(number))
        clients[0].compact(last.header.revision)
        clients[0].put("view/b", "after")
        assert view.wait_for(lambda now: dict(now) == {b"a": b"19", b"b": b"after"}, WAIT)


def test_an_instance_is_listed_while_it_lives(clients: list[kvorum.Client]) -> None:
    mail = Service(clients[0], "mail")
    with mail.view() as view, Service(clients[1], "mail").register("10.0.0.7:25", metadata="eu", ttl=2) as instance:
        assert mail.instances() == {b"10.0.0.7:25": b"eu"}
        assert view.wait_for(lambda now: len(now) == 1, WAIT)
        clients[0].revoke_lease(instance._lease.id)  # as after a long break of the network
        eventually(lambda: not mail.instances(), WAIT)
        eventually(lambda: mail.instances(), WAIT, "registered again")
    eventually(lambda: not mail.instances(), WAIT)


def test_what_is_refused_stays_refused(clients: list[kvorum.Client]) -> None:
    lock = Lock(clients[0], "locks/misused")
    for use in (lock.release, lock.check, lambda: lock.token):
        with pytest.raises(RuntimeError):
            use()
    with pytest.raises(NotLeading):
        Election(clients[0], "elections/misused").proclaim("x")
    clients[0].put("text", "abc")
    with pytest.raises(ValueError, match="invalid literal"):
        Counter(clients[0], "text").add()
    assert issubclass(errors.LeaseNotFound, kvorum.Refused)
