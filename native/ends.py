"""The sockets of a process: waited for together, read and written in one call each (native/ends.h says why and how)."""

from __future__ import annotations

import errno

import zmq
import zmq.backend.cython._zmq as pyzmq

from native._ends import ffi, lib

MESSAGES_MAX: int = lib.ENDS_MESSAGES
_REFUSED = (0, errno.EAGAIN, errno.EHOSTUNREACH)


def _load() -> None:
    missing = ffi.new("const char **")
    path = ffi.new("char[]", pyzmq.__file__.encode())
    if lib.ends_load(path, missing):
        raise ImportError(f"kvorum: {ffi.string(missing[0]).decode()} is not where pyzmq's libzmq is sought")


_load()


class Ends:
    """See native/ends.h. An end is a number: that of its bit in the masks of `wait`.

    Whatever is done with a socket after it was added must be done through here. For one thread.
    """

    def __init__(self) -> None:
        self._ends = ffi.gc(lib.ends_new(), lib.ends_free)
        self._ready = ffi.new("uint64_t *")
        self._parts = ffi.new("const struct ends_part **")
        self._dry = ffi.new("int *")
        self._sockets: list[zmq.Socket[bytes]] = []

    def add(self, source: zmq.Socket[bytes] | int) -> int:
        """A socket, or the file descriptor of something else. Raises OSError: there are 32 already."""
        if isinstance(source, int):
            end: int = lib.ends_add_fd(self._ends, source)
        else:
            self._sockets.append(source)
            end = lib.ends_add_socket(self._ends, source.underlying)
        if end < 0:
            raise OSError(ffi.errno, "a process has no more ends than 32")
        return end

    def wait(self, which: int, milliseconds: int) -> int:
        """Until one of the ends in this mask has something, so long at most, or until a signal. Returns which have."""
        if lib.ends_wait(self._ends, which, milliseconds, self._ready) < 0 and ffi.errno != errno.EINTR:
            raise zmq.ZMQError(ffi.errno)
        ready: int = self._ready[0]
        return ready

    def take(self, end: int) -> tuple[list[list[bytes]], bool]:
        """Messages that have come, in their parts, of which a message keeps its first three; and whether there may be
        more. A good part of what there is: at most MESSAGES_MAX, and none after 2 MiB."""
        count = lib.ends_take(self._ends, end, self._parts, self._dry)
        if count < 0:
            raise zmq.ZMQError(ffi.errno)
        parts, buffer = self._parts[0], ffi.buffer
        messages, message = [], []
        for i in range(count):
            part = parts[i]
            message.append(buffer(part.data, part.size)[:])
            if part.last:
                messages.append(message)
                message = []
        return messages, not self._dry[0]

    def send(self, end: int, frame: bytes, *, to: bytes = b"", blocking: bool = False) -> int:
        """To whom a ROUTER knows by the name `to`, or to whoever is there. 0: taken; EAGAIN: not now; EHOSTUNREACH:
        there is nobody of that name. Raises ZMQError for anything else."""
        error: int = lib.ends_send(self._ends, end, to, len(to), frame, len(frame), blocking)
        if error not in _REFUSED:
            raise zmq.ZMQError(error)
        return error
