"""Requests that are no matter of the keyspace, parsed."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kvorum import errors

M = TypeVar("M", bound=Message)


def parsed(kind: type[M], payload: bytes) -> M:
    """Raises Malformed."""
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise errors.Malformed from error
