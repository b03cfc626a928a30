"""What the edge costs alone: unary calls echoed through it, without a store behind; and what it holds for the idle.

h2load (Debian's nghttp2-client) sends gRPC calls with a 256-byte message, and this process answers each batch as it
came. `python -m ops.bench.edge` prints calls a second and the processor time of this process for each call: in `pipe`,
batch in and batch out; in `events`, a loop over events, an answer made for each. h2load takes the other core, so calls
a second are its limit too. Then the bytes of each idle connection, with no stream, with one and with 1000, as the edge
counts them and as the kernel does (resident: what was never touched takes none).
"""

from __future__ import annotations

import argparse
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from native import edge
from native.edge import Edge, Method

IDLE = ((8000, 0), (8000, 1), (50, 1000))


def serve(to: Edge, stop: threading.Event) -> None:
    """Echo until told to stop."""
    while not stop.is_set():
        batch = to.poll(0.05)
        if batch.calls:
            answers = bytearray(batch.calls)
            at = 0
            while at < len(answers):  # what the apply process would do
                answers[at + 5] = edge.REPLY
                at += 16 + int.from_bytes(answers[at : at + 4], "little")
            to.deliver(bytes(answers))
        if batch.events:
            data, pack, parts = batch.data, struct.Struct("<IBBHQ").pack, []
            for call, _, at, length, _, kind, method, _ in batch.events:
                if kind == edge.CALL:
                    parts.append(pack(length, method, edge.REPLY, 0, call))
                    parts.append(data[at : at + length])
            if parts:
                to.deliver(b"".join(parts))


def measure(shape: int, calls: int, clients: int, streams: int) -> tuple[float, float]:
    """Calls a second, and microseconds of processor time of this process for each."""
    to = Edge([Method("/echo.Echo/Echo", 1, shape)])
    port = to.listen("127.0.0.1", 0)
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(to, stop))
    thread.start()
    with tempfile.NamedTemporaryFile() as body:
        body.write(struct.pack(">BI", 0, 256) + bytes(256))
        body.flush()
        command = ["h2load", "-n", str(calls), "-c", str(clients), "-m", str(streams), "-t1", "-d", body.name]
        headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        done = subprocess.run(
            [*command, *headers, f"http://127.0.0.1:{port}/echo.Echo/Echo"], capture_output=True, text=True, check=True
        )
        took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    stop.set()
    thread.join()
    started, ended = to.method_stats(1)
    to.close()
    if not started == ended[0] == calls or f"{calls} succeeded" not in done.stdout:
        raise SystemExit(f"not all calls were answered: {ended}\n{done.stdout}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return calls / took, spent / calls * 1e6


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def begin(first: int, count: int) -> bytes:
    """HEADERS of so many calls of a stream that say no more, their names and values as literals."""
    text = ((b":path", b"/echo.Echo/Talk"), (b":authority", b"x"), (b"content-type", b"application/grpc"))
    literals = (b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in text)
    block = b"\x83\x86" + b"".join(literals)
    return b"".join(frame(1, 4, first + 2 * i, block) for i in range(count))


def idle(connections: int, streams: int) -> tuple[float, float]:
    """Bytes per connection with so many streams: counted, resident."""
    to = Edge([Method("/echo.Echo/Talk", 1, edge.STREAM)])
    port = to.listen("127.0.0.1", 0)
    counted, before = to.stats()["memory"], resident()
    clients = []
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + begin(1, streams))
        clients.append(client)
        opened = to.poll(0).events
        to.deliver(b"".join(edge.record(edge.HEADERS, event[0]) for event in opened if event[5] == edge.BEGUN))
    while to.stats()["streams"] < connections * streams or to.stats()["connections"] < connections:
        to.deliver(b"".join(edge.record(edge.HEADERS, e[0]) for e in to.poll(0.1).events if e[5] == edge.BEGUN))
    to.poll(0.1)
    found = (to.stats()["memory"] - counted) / connections, (resident() - before) / connections
    for client in clients:
        client.close()
    to.close()
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.edge", description=__doc__)
    parser.add_argument("--calls", type=int, default=400_000)
    parser.add_argument("--idle", type=int, nargs=2, metavar=("CONNECTIONS", "STREAMS"), help="only this")
    options = parser.parse_args(arguments)
    if options.idle:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        counted, held = idle(*options.idle)
        each = "{} connections, {} streams each".format(*options.idle)
        print(f"{each}: {counted:,.0f} bytes a connection, {held:,.0f} resident")
        return
    print(f"{'':8} {'connections':>11} {'in flight':>9} {'calls/s':>9} {'us/call':>8}")
    for name, shape in (("pipe", edge.PIPE), ("events", edge.UNARY)):
        for clients, streams in ((1, 256), (16, 16), (256, 1)):
            rate, cost = measure(shape, options.calls, clients, streams)
            print(f"{name:8} {clients:>11} {clients * streams:>9} {rate:>9,.0f} {cost:>8.2f}")
    for connections, streams in IDLE:
        again = [sys.executable, "-m", "ops.bench.edge", "--idle", str(connections), str(streams)]
        subprocess.run(again, check=True)  # in a process of its own, or what others left would be used again


if __name__ == "__main__":
    main(sys.argv[1:])
