"""Every ZeroMQ socket of a node is made here, so that its limits can be read on one page.

    who                socket             limits, and why
    peers, listening   ROUTER tcp :2380   no names: whoever connects with a member's name would cut that member off
    peers, calling     DEALER tcp         IMMEDIATE, few queued, LINGER 0: what a dead peer would have got is dropped,
                                          since Raft repeats itself and a returning peer must not get a stale flood
    clients            ROUTER tcp         MANDATORY: a full queue or a vanished client is an error for us, not a silent
                                          drop; few queued, and of answers, which may be large, hardly any: a client
                                          that never reads costs little (cluster/outbox.py)
    listeners          XPUB tcp           VERBOSE: each subscription is shown to us, for it is answered; who is too slow
                                          for his queue loses messages, and notices (cluster/broadcast.py)
    the gateway        DEALER ipc         IMMEDIATE: it is a client of apply and watch, and knows when they are gone
    own processes      ROUTER/DEALER ipc  no limit here: the conversations have windows (cluster/internal.py)

What comes over TCP is bounded in size before it is read (MAXMSGSIZE), and a connection that doesn't finish its
handshake, or whose other end is gone without a word, is closed. Local sockets live in a directory that only the node's
user may enter.

Who listens finds out by TCP's own keep-alive, and must not send ZeroMQ's heartbeats: libzmq 4.3.5 stops reading a
connection whose queue is full, notes its end for later, and ends the whole process at the next heartbeat ("Assertion
failed: !_io_error"). A client that asked for much, of a process that was busy, and left would take that process with
it. Who calls a peer may send them: nothing comes in there that could fill a queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import zmq

from kvorum import wire

PEER_BYTES_MAX = 2 * wire.BATCH_BYTES_MAX
REQUESTS_MAX = 16
"""Messages of a client, each up to the size of a batch, that wait to be taken in; then TCP holds it back."""
ANSWERS_MAX = 2
"""Messages of answers queued for a client, beside the one that is being sent."""
BROADCAST_MAX = 256
"""Publications queued for a listener; what comes beyond it is lost to it."""
SUBSCRIPTION_BYTES_MAX = 256
WATCH_MAX = 64
"""Messages of changes queued for a client."""


def _tcp(socket: zmq.Socket[bytes], *, bytes_max: int, queue: int) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, bytes_max)
    socket.setsockopt(zmq.SNDHWM, queue)
    socket.setsockopt(zmq.RCVHWM, queue)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.setsockopt(zmq.TCP_MAXRT, 20_000)
    socket.setsockopt(zmq.IPV6, 1)


def _bind(socket: zmq.Socket[bytes], urls: Iterable[str]) -> None:
    for url in urls:
        try:
            socket.bind(url)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen on {url}: {error.strerror}") from error


def peer_listener(context: zmq.Context[zmq.Socket[bytes]], url: str) -> zmq.Socket[bytes]:
    """Raises OSError if the address is taken."""
    socket = context.socket(zmq.ROUTER)
    _tcp(socket, bytes_max=PEER_BYTES_MAX, queue=1024)
    _bind(socket, [url])
    return socket


def peer_caller(context: zmq.Context[zmq.Socket[bytes]], url: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    _tcp(socket, bytes_max=PEER_BYTES_MAX, queue=256)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 1_000)
    socket.connect(url)
    return socket


def client_listener(context: zmq.Context[zmq.Socket[bytes]], urls: Sequence[str], send: int) -> zmq.Socket[bytes]:
    """At most `send` messages are queued for each client. Raises OSError if an address is taken."""
    socket = context.socket(zmq.ROUTER)
    _tcp(socket, bytes_max=wire.BATCH_BYTES_MAX, queue=REQUESTS_MAX)
    socket.setsockopt(zmq.SNDHWM, send)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    _bind(socket, urls)
    return socket


def broadcaster(context: zmq.Context[zmq.Socket[bytes]], url: str) -> zmq.Socket[bytes]:
    """At most BROADCAST_MAX messages are queued for each listener. Raises OSError if the address is taken."""
    socket = context.socket(zmq.XPUB)
    _tcp(socket, bytes_max=SUBSCRIPTION_BYTES_MAX, queue=BROADCAST_MAX)
    socket.setsockopt(zmq.XPUB_VERBOSE, 1)
    _bind(socket, [url])
    return socket


def client_caller(context: zmq.Context[zmq.Socket[bytes]], url: str) -> zmq.Socket[bytes]:
    """A plain caller of a node's own client port, for the health check."""
    socket = context.socket(zmq.DEALER)
    _tcp(socket, bytes_max=wire.BATCH_BYTES_MAX, queue=64)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.connect(url)
    return socket


def gateway_caller(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """The gateway's end to apply or watch, which treat it as a client. Without a connection it takes nothing."""
    socket = context.socket(zmq.DEALER)
    _tcp(socket, bytes_max=-1, queue=16)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.RECONNECT_IVL, 10)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
    return socket


def breaks(socket: zmq.Socket[bytes], url: str) -> zmq.Socket[bytes]:
    """Connect, and have a message here whenever the connection breaks."""
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    socket.connect(url)
    return monitor


def local_listener(context: zmq.Context[zmq.Socket[bytes]], path: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
        socket.setsockopt(option, 0)
    _bind(socket, [f"ipc://{path}"])
    return socket


def local_caller(context: zmq.Context[zmq.Socket[bytes]], path: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
        socket.setsockopt(option, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 10)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
    socket.connect(f"ipc://{path}")
    return socket
