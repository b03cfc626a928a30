"""The fake gateway process."""

from collections.abc import Sequence

from tests.fakes import child


def main(argv: Sequence[str]) -> int:
    return child.main("gateway", argv)
