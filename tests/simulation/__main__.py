"""`python -m tests.simulation`: run seeds, or tell the story of one.

python -m tests.simulation --seed 8472 --trace     replay one seed and tell what happens in it
python -m tests.simulation --seeds 0:2000          run many; ends with 1 if any failed, naming the command for each
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import SECONDS, Report, Run


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Simulate whole clusters.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run one seed")
    which.add_argument("--seeds", type=_span, metavar="A:B", help="run the seeds from A to B - 1")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="simulated seconds of trouble (%(default)s)")
    parser.add_argument("--trace", action="store_true", help="tell everything that happens")
    parser.add_argument("--mutant", choices=[mutant.name for mutant in MUTANTS], help="run this wrong one instead")
    options = parser.parse_args(argv)
    seeds = range(options.seed, options.seed + 1) if options.seeds is None else options.seeds
    mutant = next((mutant for mutant in MUTANTS if mutant.name == options.mutant), None)
    trace = print if options.trace else None
    totals = _Totals(lambda seed: replay_command(seed, options.seconds, options.mutant))
    for seed in seeds:
        totals.add(seed, attempt(seed, seconds=options.seconds, mutant=mutant, trace=trace))
        for line in totals.news:
            print(line, flush=True)
    print(totals.summary())
    return 1 if totals.failed else 0


def attempt(
    seed: int,
    *,
    seconds: int = SECONDS,
    mutant: Mutant | None = None,
    trace: Callable[[str], None] | None = None,
) -> Report:
    """Run a seed; whatever a process died of is one of the things that went wrong."""
    shells, plan = (mutant.shells(), mutant.plan) if mutant else (None, None)
    try:
        return Run(seed, seconds=seconds, shells=shells, plan=plan, trace=trace).go()
    except Exception as error:  # the report is how it is told; nothing goes on after it
        where = "".join(traceback.format_exception(error)[-3:]) if trace else ""
        return Report(seed, wrong=[f"{type(error).__name__}: {error}\n{where}".rstrip()])


def replay_command(seed: int, seconds: int = SECONDS, mutant: str | None = None) -> str:
    """What makes the same run happen again; `--trace` added, it tells its story."""
    options = (f" --seconds {seconds}" if seconds != SECONDS else "") + (f" --mutant {mutant}" if mutant else "")
    return f"python -m tests.simulation --seed {seed}{options}"


class _Totals:
    """What all the runs came to."""

    def __init__(self, again: Callable[[int], str]) -> None:
        self._again = again
        self.sums: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.failed: list[int] = []
        self.news: list[str] = []
        self._began = time.process_time()

    def add(self, seed: int, report: Report) -> None:
        self.news = []
        for name in ("virtual", "operations", "answered", "maybe", "revisions", "heard", "elections", "undecided"):
            self.sums[name] += getattr(report, name)
        self.sums["runs"] += 1
        self.faults.update(report.faults)
        self.seen.update(report.seen)
        if report.wrong:
            self.failed.append(seed)
            self.news = [f"seed {seed}: {line}" for line in report.wrong[:5]]
            self.news.append(f"replay: {self._again(seed)}")

    def summary(self) -> str:
        sums, seconds = self.sums, time.process_time() - self._began
        return (
            f"{sums['runs']} runs, {len(self.failed)} failed; {sums['virtual'] / 3600:.2f} simulated hours in "
            f"{seconds:.0f} s ({sums['virtual'] / max(seconds, 0.001):.0f} times real time)\n"
            f"{sums['operations']} operations, {sums['answered']} answered, {sums['maybe']} maybe, "
            f"{sums['revisions']} revisions, {sums['heard']} events watched, {sums['elections']} elections, "
            f"{sums['undecided']} searches undecided\n"
            f"troubles: {_listed(self.faults)}\nseen: {_listed(self.seen)}"
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _span(text: str) -> range:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B")
    return range(int(first), int(last))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
