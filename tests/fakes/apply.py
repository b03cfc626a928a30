"""The fake apply process."""

from collections.abc import Sequence

from tests.fakes import child


def main(argv: Sequence[str]) -> int:
    return child.main("apply", argv)
