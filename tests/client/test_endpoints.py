"""Addresses as people write them, and whose turn it is (kvorum.endpoints)."""

from __future__ import annotations

from random import Random

import pytest

from kvorum.endpoints import REST_MAX, Endpoints, of_same_host, parse, usable

ABC = ["tcp://a:1", "tcp://b:1", "tcp://c:1"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "tcp://127.0.0.1:2381"),
        ("127.0.0.1:99", "tcp://127.0.0.1:99"),
        ("tcp://db.example:2381", "tcp://db.example:2381"),
        ("[::1]", "tcp://[::1]:2381"),
        ("[::1]:5", "tcp://[::1]:5"),
        ("ipc:///run/kvorum.sock", "ipc:///run/kvorum.sock"),
        (" a:1 ", "tcp://a:1"),
    ],
)
def test_an_endpoint_may_be_short(text: str, address: str) -> None:
    """The port is 2381 if none is given."""
    assert parse(text) == [address]


def test_several_endpoints_come_by_comma_or_in_a_list_and_count_once() -> None:
    assert parse("a:1, b:1,a:1") == ["tcp://a:1", "tcp://b:1"]
    assert parse(["a:1", "b:1"]) == ["tcp://a:1", "tcp://b:1"]


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:x", "a:0", "a:65536", "http://a:2379", "ipc://", "a/b:1", "a:1,"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"endpoint|least one"):
        parse(text)


def test_no_endpoint_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        parse([])


def test_clients_spread_over_the_list() -> None:
    """A thousand clients given one list must not all sit on its first node."""
    starts = [Endpoints(ABC, Random(seed)).choose(0) for seed in range(300)]
    assert all(80 <= starts.count(address) <= 120 for address in ABC)


def test_a_failed_endpoint_rests_and_the_next_one_has_its_turn() -> None:
    endpoints = Endpoints(ABC, Random(0), shuffle=False)
    for address in ABC:
        assert endpoints.choose(0) == address
        endpoints.failed(address, 0, "refused")
    assert endpoints.choose(0) is None
    assert 0 < endpoints.usable_at() <= 0.05
    assert endpoints.choose(endpoints.usable_at()) in ABC
    assert endpoints.trouble() == "tcp://a:1: refused; tcp://b:1: refused; tcp://c:1: refused"


def test_rests_grow_to_a_bound_and_end_with_a_success() -> None:
    endpoints = Endpoints(ABC[:1], Random(0))
    rests = []
    for _ in range(40):
        endpoints.failed(ABC[0], 0, "refused")
        rests.append(endpoints.usable_at())
    assert max(rests[:2]) <= 0.1
    assert REST_MAX / 2 <= min(rests[-10:]) <= max(rests[-10:]) <= REST_MAX
    endpoints.succeeded(ABC[0])
    assert endpoints.choose(0) == ABC[0]
    endpoints.failed(ABC[0], 0, "refused")
    assert endpoints.usable_at() <= 0.05


def test_clients_of_one_dead_node_do_not_come_back_in_step() -> None:
    rests = set()
    for seed in range(20):
        endpoints = Endpoints(ABC[:1], Random(seed))
        endpoints.failed(ABC[0], 0, "refused")
        rests.add(endpoints.usable_at())
    assert len(rests) == 20


def test_addresses_a_node_tells_are_used_if_they_lead_to_a_node_from_here() -> None:
    """A node's loopback is its own machine, and "any address" is no address."""
    told = [
        "tcp://db2:1",
        "tcp://127.0.0.1:1",
        "tcp://localhost:1",
        "tcp://[::1]:1",
        "tcp://0.0.0.0:1",
        "tcp://*:1",
        ":",
    ]
    assert usable(told, "tcp://db1:1") == ["tcp://db2:1"]
    assert usable(told, "tcp://127.0.0.1:9") == told[:4]
    assert usable(told, "ipc:///run/kvorum") == told[:4]


@pytest.mark.parametrize(
    ("told", "via", "address"),
    [
        ("tcp://0.0.0.0:2", "tcp://db1:1", "tcp://db1:2"),
        ("tcp://127.0.0.1:2", "tcp://db1:1", "tcp://db1:2"),
        ("tcp://127.0.0.1:2", "tcp://localhost:1", "tcp://127.0.0.1:2"),
        ("tcp://other:2", "tcp://db1:1", "tcp://other:2"),
        ("ipc:///w", "tcp://db1:1", "ipc:///w"),
        ("tcp://*:2", "ipc:///run/kvorum", "tcp://*:2"),
    ],
)
def test_another_port_of_the_same_node_is_on_the_same_host(told: str, via: str, address: str) -> None:
    assert of_same_host(told, via) == address
