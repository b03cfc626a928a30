"""What can go wrong, said as what the caller knows now.

    Refused      every replica says the same no; nothing was done, and asking again changes nothing
    Unavailable  nothing was done; asking again, here or elsewhere, may succeed
    Ambiguous    perhaps it was done: look before you ask again

On the wire an error is a gRPC status code and a text spelled as etcd spells it (client libraries compare texts). The
classes below are that table; `from_wire` is the way back. What is in no class is filed by its code: the definite codes
are Refused, RESOURCE_EXHAUSTED is Unavailable, and the rest is Ambiguous.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class KvorumError(Exception):
    """Any answer that is not the one asked for. `code` and `text` are what went over the wire."""

    code: Code = Code.UNKNOWN
    text: str = "etcdserver: unknown error"
    response: object = None
    """The message that said so, where there was more than a text: the WatchResponse that ended a watch."""

    def __init__(self, text: str | None = None, code: Code | None = None) -> None:
        if text is not None:
            self.text = text
        if code is not None:
            self.code = code
        super().__init__(self.text)


class Refused(KvorumError):
    """Every replica says the same no. Nothing was done."""


class Unavailable(KvorumError):
    """Nothing was done, and the same request may succeed later or elsewhere."""

    code = Code.UNAVAILABLE


class Ambiguous(KvorumError):
    """The request may have been done, or be done later, at most once. Read before asking again."""

    code = Code.UNAVAILABLE


class EmptyKey(Refused):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: key is not provided"


class KeyNotFound(Refused):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: key not found"


class ValueProvided(Refused):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: value is provided"


class LeaseProvided(Refused):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: lease is provided"


class TooManyOps(Refused):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"


class DuplicateKey(Refused):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"


class InvalidSortOption(Refused):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: invalid sort option"


class BadClientVersion(Refused):
    """The gateway's alone."""

    code, text = Code.INVALID_ARGUMENT, "etcdserver: invalid client api version"


class RequestTooLarge(Refused):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: request is too large"


class Compacted(Refused):
    """`compact_revision` is the oldest revision still readable, where the answer told it (a watch's does), else 0."""

    code, text = Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"
    compact_revision = 0


class FutureRevision(Refused):
    code, text = Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"


class LeaseNotFound(Refused):
    code, text = Code.NOT_FOUND, "etcdserver: requested lease not found"


class LeaseExists(Refused):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: lease already exists"


class LeaseTTLTooLarge(Refused):
    code, text = Code.OUT_OF_RANGE, "etcdserver: too large lease TTL"


class NotLeader(Refused):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: not leader"


class BadLeaderTransferee(Refused):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee"


class Malformed(Refused):
    """The bytes are not the message they should be."""

    code, text = Code.INTERNAL, "grpc: error unmarshalling request"


class Unimplemented(Refused):
    code, text = Code.UNIMPLEMENTED, "unknown method"


class VersionMismatch(Refused):
    code, text = Code.FAILED_PRECONDITION, "kvorum: protocol version not supported"


class Corrupt(Refused):
    """An alarm stands: members hold different things, and nothing is written until somebody has looked."""

    code, text = Code.DATA_LOSS, "etcdserver: corrupt cluster"


class NoSpace(Unavailable):
    code, text = Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"


class TooManyRequests(Unavailable):
    code, text = Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"


class NoLeader(Unavailable):
    code, text = Code.UNAVAILABLE, "etcdserver: no leader"


class Unreachable(Unavailable):
    """The client's own: no endpoint took the request."""

    code, text = Code.UNAVAILABLE, "there is no connection available"


class TimedOut(Ambiguous):
    code, text = Code.UNAVAILABLE, "etcdserver: request timed out"


class TimedOutLeaderFailure(Ambiguous):
    code, text = Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"


class Stopped(Ambiguous):
    code, text = Code.UNAVAILABLE, "etcdserver: server stopped"


class DeadlineExceeded(Ambiguous):
    """The client's own: its deadline passed after the request had left."""

    code, text = Code.DEADLINE_EXCEEDED, "context deadline exceeded"


class ConnectionLost(Ambiguous):
    """The client's own: the endpoint went away after the request had left."""

    code, text = Code.UNAVAILABLE, "connection lost before the answer came"


_DEFINITE: frozenset[int] = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)


def _table(base: type[KvorumError]) -> dict[tuple[int, str], type[KvorumError]]:
    found: dict[tuple[int, str], type[KvorumError]] = {}
    for cls in base.__subclasses__():
        if "text" in vars(cls):
            found[(cls.code, cls.text)] = cls
        found |= _table(cls)
    return found


_BY_WIRE = _table(KvorumError)


def from_wire(code: int, text: str) -> KvorumError:
    """The exception for an error record. Never raises: an unknown code is filed as Ambiguous, the careful reading."""
    cls = _BY_WIRE.get((code, text))
    if cls is not None:
        return cls()
    try:
        known = Code(code)
    except ValueError:
        known = Code.UNKNOWN
    if known in _DEFINITE:
        return Refused(text, known)
    if known is Code.RESOURCE_EXHAUSTED:
        return Unavailable(text, known)
    return Ambiguous(text, known)
