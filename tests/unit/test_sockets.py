"""What the sockets of a node must never be set to."""

from __future__ import annotations

import zmq

from cluster import sockets
from tests.conftest import PortBlock


def test_who_listens_sends_no_heartbeats_and_notices_the_dead_all_the_same(ports: PortBlock) -> None:
    """libzmq 4.3.5 ends the process ("Assertion failed: !_io_error") at the second heartbeat to a client that filled
    its queue (REQUESTS_MAX) while the process was busy, and left: 10 s with heartbeats every 5 s."""
    context = zmq.Context()
    peers, clients, listeners = (f"tcp://127.0.0.1:{ports.base + i}" for i in range(3))
    made = [
        sockets.peer_listener(context, peers),
        sockets.client_listener(context, [clients], sockets.ANSWERS_MAX),
        sockets.broadcaster(context, listeners),
    ]
    for socket in made:
        with socket:
            assert socket.getsockopt(zmq.RCVHWM) > 0, "without a bound a client could take all memory"
            assert socket.getsockopt(zmq.HEARTBEAT_IVL) == 0
            assert socket.getsockopt(zmq.TCP_KEEPALIVE) == 1
            assert 0 < socket.getsockopt(zmq.TCP_MAXRT) <= 20_000
    context.destroy(linger=0)
