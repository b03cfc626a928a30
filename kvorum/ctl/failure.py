"""How a command fails: a sentence on stderr and etcdctl's exit code."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    ERROR = 1
    BAD_CONNECTION = 2
    INVALID_INPUT = 3
    BAD_FEATURE = 4
    INTERRUPTED = 5
    IO = 6
    BAD_ARGS = 128


class Failure(Exception):
    """Ends the command. `code` is what the shell sees."""

    def __init__(self, code: Exit, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(text)
