"""What libzmq does to those who use it carelessly, done to our sockets: each story in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNT = 20_000

BEGINNING = f"""
import time
import zmq
from kvorum.link import Ear

publisher = zmq.Context().socket(zmq.XPUB)
publisher.setsockopt(zmq.SNDHWM, 0)
publisher.setsockopt(zmq.LINGER, 0)
port = publisher.bind_to_random_port("tcp://127.0.0.1")
ear = Ear(f"tcp://127.0.0.1:{{port}}")
ear.tune(b"topic", True)
assert publisher.recv() == b"\\1topic"
for _ in range({COUNT}):
    publisher.send(b"topic" + bytes(1000))
"""

SLEEPER = """
assert not publisher.poll(5_000), "its heartbeats were not read"
heard = 0
deadline = time.monotonic() + 60
while heard < COUNT and time.monotonic() < deadline:
    while ear.receive() is not None:
        heard += 1
    time.sleep(0.01)
ear.look()
assert not ear.trouble, ear.trouble
print(heard)
"""

MOURNER = """
time.sleep(0.5)
publisher.close()
time.sleep(2)  # heartbeats are due meanwhile
deadline = time.monotonic() + 60
while not ear.trouble and time.monotonic() < deadline:
    while ear.receive() is not None:
        pass
    ear.look()
    time.sleep(0.01)
print(ear.trouble)
"""


def told(ending: str) -> str:
    """What the process says at its end, which must be a natural one."""
    script = BEGINNING + ending.replace("COUNT", str(COUNT))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_connection_that_is_not_read_for_long_is_kept_and_loses_nothing() -> None:
    """A full queue would leave its heartbeats unread; and to reconnect then ends the process (libzmq #3937)."""
    assert told(SLEEPER) == str(COUNT)


def test_the_end_of_a_connection_that_nobody_reads_is_not_ours() -> None:
    """With a full queue, the next heartbeat after its peer's end would end the process."""
    assert told(MOURNER) == "connection lost"
