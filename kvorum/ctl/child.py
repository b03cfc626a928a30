"""The commands that watch and lock run: how they are told things, and how their end is told, in Go's words."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

KILLED = 255
"""The exit code of a program whose command was ended by a signal (etcdctl: the -1 of Go's ProcessState)."""


class Ended(NamedTuple):
    """`trouble` is "" if all went well."""

    code: int
    trouble: str


def run(command: Sequence[str], told: Mapping[str, str]) -> Ended:
    """Run it with `told` in its environment, and wait for it."""
    try:
        code = subprocess.run(command, env={**os.environ, **told}, check=False).returncode
    except FileNotFoundError:
        where = f'exec: "{command[0]}": executable file not found in $PATH'
        return Ended(1, where if os.sep not in command[0] else f"fork/exec {command[0]}: no such file or directory")
    except OSError as error:
        return Ended(1, f"fork/exec {command[0]}: {(error.strerror or str(error)).lower()}")
    if code < 0:
        return Ended(KILLED, f"signal: {(signal.strsignal(-code) or str(-code)).lower()}")
    return Ended(code, f"exit status {code}" if code else "")
