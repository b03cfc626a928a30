"""What libzmq does to those who use it carelessly, done to our sockets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SLEEPER = """
import time
import zmq
from kvorum.link import EAR_MESSAGES_MAX, Ear

publisher = zmq.Context().socket(zmq.XPUB)
publisher.setsockopt(zmq.SNDHWM, 0)
publisher.setsockopt(zmq.LINGER, 0)
port = publisher.bind_to_random_port("tcp://127.0.0.1")
ear = Ear(f"tcp://127.0.0.1:{port}")
ear.tune(b"topic", True)
assert publisher.recv() == b"\\1topic"
for _ in range(20 * EAR_MESSAGES_MAX):
    publisher.send(b"topic" + bytes(2000))
assert publisher.poll(20_000), "a connection whose heartbeats nobody reads should have ended"
assert publisher.recv() == b"\\0topic"
publisher.poll(1_500)  # whoever reconnects has done so by now
deadline = time.monotonic() + 20
while not ear.trouble and time.monotonic() < deadline:
    while ear.receive() is not None:
        pass
    ear.look()
    time.sleep(0.05)
print(ear.trouble)
"""


def test_an_ear_that_is_not_read_for_long_loses_its_connection_and_nothing_else() -> None:
    """libzmq #3937: a socket that reconnects by itself would end the process here, with SIGABRT."""
    done = subprocess.run(
        [sys.executable, "-c", SLEEPER], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "connection lost\n"), done.stderr
