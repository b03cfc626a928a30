"""Waking a thread that polls: a socket pair that is readable when somebody has called."""

from __future__ import annotations

import contextlib
import socket


class Nudge:
    """`fd` polls readable after a call of poke() until drain(). Any thread may poke."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)
        self.fd = self._out.fileno()

    def poke(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of pokes: one is enough
            self._in.send(b"!")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._out.recv(4096)

    def close(self) -> None:
        self._out.close()
        self._in.close()
