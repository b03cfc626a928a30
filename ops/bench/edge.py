"""What the edge costs alone: unary calls echoed through it, without a store behind. `python -m ops.bench.edge`.

h2load (Debian's nghttp2-client) sends gRPC calls with a 256-byte message; this process answers each batch as it came.
Prints calls a second, and the processor time of this process for each call: in `pipe`, batch in and batch out; in
`events`, a loop over events, an answer made for each. h2load takes the other core, so calls a second are its limit too.
"""

from __future__ import annotations

import argparse
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time

from native import edge
from native.edge import Edge, Method


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


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.edge", description=__doc__)
    parser.add_argument("--calls", type=int, default=400_000)
    options = parser.parse_args(arguments)
    print(f"{'':8} {'connections':>11} {'in flight':>9} {'calls/s':>9} {'us/call':>8}")
    for name, shape in (("pipe", edge.PIPE), ("events", edge.UNARY)):
        for clients, streams in ((1, 256), (16, 16), (256, 1)):
            rate, cost = measure(shape, options.calls, clients, streams)
            print(f"{name:8} {clients:>11} {clients * streams:>9} {rate:>9,.0f} {cost:>8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
