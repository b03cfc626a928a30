"""Turns measurements into RESULTS.md and a picture.

A ratio is kvorum's number over etcd's in the same round, so that what the machine did to one round touches both; the
table shows the median of those ratios and their extremes. Medians of the absolute numbers stand beside them.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ops.bench.workloads import WORKLOADS, Workload

SYSTEMS = ("etcd", "kvorum")
GATEWAY = "gateway"
"""kvorum again, but driven by etcd's client through the gateway; has tables of its own."""
FINDINGS = Path(__file__).with_name("FINDINGS.md")
"""What somebody found out about the numbers; goes into the page as it is."""

GOALS = {
    "put/256": 2.0, "txn/256": 2.0, "get/256": 2.0, "put/1 p50": 1.0, "memory": 1.0,
    "put/256/100": 10.0, "keep-alive/256": 3.0, "put/16/100 p99": 1.0,
}  # fmt: skip
"""What is to be reached on three nodes now: at least for a throughput, at most for a latency and for memory."""
_FORMS = {"k/s": "{:.1f}", "k events/s": "{:.0f}", "ms": "{:.2f}", "MB": "{:.0f}", "×": "{:.2f}"}

GATEWAY_GOALS = {
    "put/256": 2.0, "txn/256": 2.0, "get/256": 1.2, "get-serializable/256": 1.2, "mixed/256": 1.5,
    "keep-alive/256": 1.5, "put/256/100": 3.0, "put/1 p50": 1.0, "get/1 p50": 1.0,
}  # fmt: skip
"""The same through the gateway."""
GATEWAY_GOALS_ONE_NODE = {"put/256": 1.5}
WATCHED, UNWATCHED, WATCHED_GOAL = "put/256/1000", "put/256", 0.8
"""How much of the puts is left, at least, with a thousand watchers."""


@dataclass(frozen=True)
class Row:
    """One workload on clusters of one size. Empty lists: not measured."""

    title: str
    unit: str
    more_is_better: bool
    values: dict[str, list[float]]
    ratios: list[float]
    goal: float | None = None
    ours: bool = False
    """The goal is for kvorum's number, not for the ratio."""

    def median(self, system: str) -> float | None:
        return statistics.median(self.values[system]) if self.values[system] else None

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def reached(self) -> bool | None:
        found = self.median("kvorum") if self.ours else self.ratio
        if found is None or self.goal is None:
            return None
        return found >= self.goal if self.more_is_better else found <= self.goal


def beside_etcd(results: dict[str, Any], system: str) -> dict[str, Any]:
    """The results of etcd and one of kvorum's two sides, which is called kvorum in them."""
    sessions = [
        s if s["system"] == "etcd" else s | {"system": "kvorum"}
        for s in results["sessions"]
        if s["system"] in ("etcd", system)
    ]
    return results | {"sessions": sessions}


def rows(results: dict[str, Any], nodes: int, goals: dict[str, float] | None = None) -> list[Row]:
    """One for each number of clusters of this size; the goals are GOALS, on three nodes, unless given."""
    if goals is None:
        goals = GOALS if nodes == 3 else {}
    found = []
    for workload in WORKLOADS:
        if not workload.by_latency:
            unit, goal = "k events/s" if workload.counts_events else "k/s", goals.get(workload.id)
            title = workload.title
            found.append(_row(results, nodes, workload.id, "operations_per_second", 1e-3, title, unit, True, goal))
        else:
            for rank in ("p50", "p99"):
                title, goal = f"{workload.title}, {rank}", goals.get(f"{workload.id} {rank}")
                found.append(_row(results, nodes, workload.id, f"{rank}_ms", 1.0, title, "ms", False, goal))
    found.append(_left(results, nodes))
    goal = goals.get("memory")
    found.append(_row(results, nodes, "memory", "pss", 1.0, "memory of a node, PSS", "MB", False, goal))
    found.append(_row(results, nodes, "memory", "rss", 1.0, "memory of a node, RSS", "MB", False, None))
    return [row for row in found if any(row.values.values())]


def _row(
    results: dict[str, Any], nodes: int, what: str, metric: str, scale: float, title: str, unit: str, up: bool,
    goal: float | None,
) -> Row:  # fmt: skip
    by_round: dict[str, dict[int, float]] = {system: {} for system in SYSTEMS}
    for session in results["sessions"]:
        measured = session["measured"].get(what)
        if session["nodes"] == nodes and measured is not None:
            by_round[session["system"]][session["round"]] = measured[metric] * scale
    both = sorted(by_round["etcd"].keys() & by_round["kvorum"].keys())
    ratios = [by_round["kvorum"][r] / by_round["etcd"][r] for r in both if by_round["etcd"][r]]
    return Row(title, unit, up, {s: list(v.values()) for s, v in by_round.items()}, ratios, goal)


def _left(results: dict[str, Any], nodes: int) -> Row:
    """What of each system's own puts is left with the watchers."""
    values: dict[str, dict[int, float]] = {system: {} for system in SYSTEMS}
    for session in results["sessions"]:
        with_, without = (session["measured"].get(id) for id in (WATCHED, UNWATCHED))
        if session["nodes"] == nodes and with_ and without:
            left = with_["operations_per_second"] / without["operations_per_second"]
            values[session["system"]][session["round"]] = left
    both = sorted(values["etcd"].keys() & values["kvorum"].keys())
    ratios = [values["kvorum"][r] / values["etcd"][r] for r in both]
    goal = WATCHED_GOAL if nodes == 3 else None
    title = "put with 1,000 watchers, over put without"
    return Row(title, "×", True, {s: list(v.values()) for s, v in values.items()}, ratios, goal, ours=True)


# ---- RESULTS.md


def markdown(results: dict[str, Any], picture: str) -> str:
    plan, machine, versions = results["plan"], results["machine"], results["versions"]
    native, gateway = beside_etcd(results, "kvorum"), beside_etcd(results, GATEWAY)
    out = ["# kvorum and etcd side by side", ""]
    out += [
        f"kvorum {versions['kvorum']} beside etcd {versions['etcd']}, {results['date']}. {plan['rounds']} rounds; in "
        f"each, the systems in turn (the first changes from round to round), each on an empty directory of the same "
        f"disk, filled with {plan['keys']:,} keys; values of {plan['value_bytes']} bytes. Every measurement is "
        f"{plan['window_seconds']:g} s after {plan['warmup_seconds']:g} s of warming up. A ratio is kvorum over etcd "
        "within one round; in brackets the lowest and the highest of the rounds.",
        "",
        f"![ratios]({picture})",
        "",
    ]
    for nodes in plan["nodes"]:
        out += [f"## {_count(nodes)}", "", *_table(rows(native, nodes), nodes == 3), ""]
        through = rows(gateway, nodes, GATEWAY_GOALS if nodes == 3 else GATEWAY_GOALS_ONE_NODE)
        if any(row.values["kvorum"] for row in through):
            out += ["Both driven by etcd's Go client, kvorum through its gateway:", "", *_table(through, True), ""]
    for nodes in plan["nodes"]:
        out += [f"### {_count(nodes)}: where the time goes", "", *_cpu_table(results, nodes), ""]
    if results.get("scale"):
        out += ["## How much one node bears", "", *_scale(results["scale"]), ""]
    out += [FINDINGS.read_text(encoding="utf-8")]
    out += ["## What was measured, and how", "", *_how(results), ""]
    out += ["## Where and with what", ""]
    out += [f"- {name}: {value}" for name, value in machine.items()]
    out += [f"- {name}: {value}" for name, value in versions.items()]
    out += ["", "## Again", "", "```", "make bench                        # this page, about half an hour"]
    out += [".venv/bin/python -m ops.bench --quick   # two short rounds, under build/bench/", "```", ""]
    return "\n".join(out)


def _count(nodes: int) -> str:
    return "One node" if nodes == 1 else f"{'Three' if nodes == 3 else nodes} nodes"


def _table(found: list[Row], goals: bool) -> list[str]:
    lines = ["| workload | etcd | kvorum | ratio |" + (" goal |" if goals else "")]
    lines += ["| --- | ---: | ---: | ---: |" + (" --- |" if goals else "")]
    for row in found:
        cells = [row.title, *(_span(row.values[system], row.unit) for system in SYSTEMS)]
        cells.append(
            "" if row.ratio is None else f"**{row.ratio:.2f}** ({min(row.ratios):.2f} – {max(row.ratios):.2f})"
        )
        if goals:
            mark = {None: "", True: ", reached", False: ", **missed**"}[row.reached]
            sign, whose = "≥" if row.more_is_better else "≤", " (kvorum's own)" if row.ours else ""
            cells.append("" if row.goal is None else f"{sign} {row.goal:g}{whose}{mark}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _scale(found: list[dict[str, Any]]) -> list[str]:
    lines = ["Once each, on a fresh node of its own; memory is PSS of all its processes.", ""]
    lines += ["| what | system | time | memory before → after | and |", "| --- | --- | ---: | ---: | --- |"]
    for row in found:
        memory = "" if row["memory_mb"] is None else " → ".join(f"{m:.0f}" for m in row["memory_mb"]) + " MB"
        lines.append(f"| {row['title']} | {row['system']} | {row['seconds']:.1f} s | {memory} | {row['notes']} |")
    return lines


def _span(values: list[float], unit: str) -> str:
    if not values:
        return "not measured"
    form = _FORMS[unit]
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return f"{middle} {unit} ({low} – {high})"


def _cpu_table(results: dict[str, Any], nodes: int) -> list[str]:
    """Where the time goes: median CPU time per operation, and the rest of the latencies."""
    lines = [
        "| workload | system | p50 | p99 | CPU of all servers | CPU of the client | CPUs busy | CPUs busy elsewhere |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for workload in WORKLOADS:
        for system in (*SYSTEMS, GATEWAY):
            all_of = _all(results, nodes, system, workload)
            if not all_of:
                continue
            m = {name: statistics.median(one[name] for one in all_of) for name in _NUMBERS}
            lines.append(
                f"| {workload.title} | {system} | {m['p50_ms']:.2f} ms | {m['p99_ms']:.2f} ms "
                f"| {m['server_cpu_us']:.1f} µs/op | {m['client_cpu_us']:.1f} µs/op "
                f"| {m['cpus_used']:.2f} | {m['cpus_foreign']:.2f} |"
            )
    return lines


_NUMBERS = ("p50_ms", "p99_ms", "server_cpu_us", "client_cpu_us", "cpus_used", "cpus_foreign")


def _all(results: dict[str, Any], nodes: int, system: str, workload: Workload) -> list[dict[str, Any]]:
    return [
        session["measured"][workload.id]
        for session in results["sessions"]
        if session["nodes"] == nodes and session["system"] == system and workload.id in session["measured"]
    ]


def _how(results: dict[str, Any]) -> list[str]:
    lines = [
        "- Closed loop: 256 clients with one call under way each, dealt out evenly to the nodes; one client goes "
        "around the nodes.",
        "- A latency runs from before the request is built until its answer is parsed and checked, in both generators.",
        "- etcd is driven by `ops/bench/etcdload`, compiled Go with etcd's official client, "
        f"{results['connections_per_node']} connections to each node: 1, 2 and 4 were level within the noise, 8 and 16 "
        "worse on three nodes (`--find-connections`). Servers and generator share the machine.",
        "- kvorum is driven by `ops/bench/nativeload.py`, Python: kvorum's own client on the native protocol, one "
        "client to each node, each in a thread of one process, calls submitted from callbacks. Bare sockets in one "
        "thread gave -1 to 9 % more puts and linearizable gets (three pairs of runs on a busy machine).",
        "- Both run with their defaults, without TLS or auth, and answer a write after a quorum has synced it to disk.",
        "- Events: 100 watchers of all keys, each with a connection of its own (kvorum's in one Python process, "
        "without a thread for each: `ops/bench/listeners.py`); an event counts when it was given to a watcher. Every "
        "watcher must be given every revision, in order, and at the end everything; every 50th response is read event "
        "by event. While transactions are written, none begins before the slowest watcher is at most 50 revisions "
        "behind.",
        "- From reply to event: puts begin at a fixed rate, and the time runs from a put's answer to its event at each "
        "watcher; an event that is there first counts as 0.",
        "- Keep-alives of etcd: 256 streams with one request under way each, for the official client would open a "
        "stream for each; of kvorum: calls.",
        "- Memory is that of all processes of a node, mean of the nodes, after the workloads. The faster system has "
        "written more by then.",
        "- \"CPUs busy elsewhere\" is everything on the machine that is neither servers nor generator, time stolen by "
        "its host included: how quiet it was.",
    ]  # fmt: skip
    lines.append(f"- {verdict(results)}")
    return lines


def verdict(results: dict[str, Any]) -> str:
    """One sentence on the answers: how many were read back, and what was wrong, if anything was."""
    sums = {system: dict.fromkeys(("errors", "read_back", "lost"), 0) for system in (*SYSTEMS, GATEWAY)}
    examples: list[str] = []
    for session in results["sessions"]:
        for name, measured in session["measured"].items():
            if name == "memory":
                continue
            for what in sums[session["system"]]:
                sums[session["system"]][what] += measured[what]
            examples += [f"{session['system']}: {text}" for text in measured["first_errors"][:1]]
    parts = [f"{s}: {v['errors']} errors, {v['read_back']} read back, {v['lost']} lost" for s, v in sums.items()]
    text = "Every answer was checked, and a sample of acknowledged writes read back. " + "; ".join(parts) + "."
    if examples:
        text += " Errors were " + ", ".join(f"`{e}`" for e in sorted(set(examples))[:5]) + "."
    failures = [
        f"{s['system']} on {s['nodes']} nodes, round {s['round']}: {s['failure']}"
        for s in results["sessions"]
        if s["failure"]
    ]
    if failures:
        text += " FAILED: " + "; ".join(failures) + "."
    return text


def clean(results: dict[str, Any]) -> bool:
    """Whether nothing failed, no call and no session."""
    return all(
        session["failure"] is None
        and all(m["errors"] == m["lost"] == 0 for name, m in session["measured"].items() if name != "memory")
        for session in results["sessions"]
    ) and not any(row["errors"] for row in results.get("scale", ()))


# ---- the picture

_WIDTH, _LEFT, _RIGHT, _ROW, _BAR = 960, 250, 130, 44, 14
_INK, _FAINT, _COLOURS = "#1f2933", "#7b8794", {"etcd": "#b8c1cc", "kvorum": "#0b7285"}


def svg(results: dict[str, Any]) -> str:
    """Bars: one panel for each size of cluster and unit, each panel with an axis of its own that begins at zero."""
    body: list[str] = []
    y = 56
    sides = (("", beside_etcd(results, "kvorum")), (", through the gateway", beside_etcd(results, GATEWAY)))
    for nodes, (how, side) in itertools.product(results["plan"]["nodes"], sides):
        found = rows(side, nodes)
        if not any(row.values["kvorum"] for row in found):
            continue
        y += 22
        body.append(f'<text x="24" y="{y}" class="h">{_count(nodes)}{how}</text>')
        for unit, caption in (
            ("k/s", "thousand operations a second, 256 in flight: longer is better"),
            ("k events/s", "thousand events a second: longer is better"),
            ("ms", "milliseconds, one client, or as said: shorter is better"),
            ("MB", "megabytes: shorter is better"),
        ):
            panel = [row for row in found if row.unit == unit]
            if panel:
                y = _panel(body, panel, caption, y + 24)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 20}" width="{_WIDTH}" height="{y + 20}" '
        f'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13" fill="{_INK}">'
        f"<style>.h{{font-size:17px;font-weight:600}}.c{{fill:{_FAINT};font-size:12px}}.r{{font-weight:600}}</style>"
        f'<rect width="100%" height="100%" fill="#ffffff"/>'
    )
    versions = results["versions"]
    legend = [f'<text x="24" y="36" class="h">kvorum and etcd {escape(versions["etcd"])} on the same machine</text>']
    for i, system in enumerate(SYSTEMS):
        x = _WIDTH - 200 + 90 * i
        legend.append(f'<rect x="{x}" y="25" width="14" height="14" rx="2" fill="{_COLOURS[system]}"/>')
        legend.append(f'<text x="{x + 20}" y="37">{system}</text>')
    return "\n".join([head, *legend, *body, "</svg>"]) + "\n"


def _panel(body: list[str], panel: list[Row], caption: str, y: int) -> int:
    longest = max(max(values) for row in panel for values in row.values.values() if values) or 1.0
    width = _WIDTH - _LEFT - _RIGHT - 60
    body.append(f'<text x="{_LEFT}" y="{y}" class="c">{caption}</text>')
    body.append(f'<text x="{_WIDTH - 24}" y="{y}" text-anchor="end" class="c">kvorum ÷ etcd</text>')
    y += 10
    for row in panel:
        body.append(f'<text x="{_LEFT - 12}" y="{y + _BAR + 6}" text-anchor="end">{escape(row.title)}</text>')
        for i, system in enumerate(SYSTEMS):
            top, value = y + i * (_BAR + 3), row.median(system)
            if value is None:
                continue
            long = value / longest * width
            body.append(
                f'<rect x="{_LEFT}" y="{top}" width="{long:.1f}" height="{_BAR}" rx="2" fill="{_COLOURS[system]}"/>'
            )
            low, high = (_LEFT + v / longest * width for v in (min(row.values[system]), max(row.values[system])))
            middle = top + _BAR / 2
            body.append(
                f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{_INK}" stroke-opacity=".55" stroke-width="1.5"/>'
            )
            at = max(_LEFT + long, high) + 6
            body.append(f'<text x="{at:.1f}" y="{top + 12}" class="c">{_FORMS[row.unit].format(value)}</text>')
        if row.ratio is not None:
            good = row.ratio >= 1 if row.more_is_better else row.ratio <= 1
            colour = _COLOURS["kvorum"] if good else "#c2410c"
            body.append(
                f'<text x="{_WIDTH - 24}" y="{y + _BAR + 6}" text-anchor="end" class="r" fill="{colour}">'
                f"{row.ratio:.2f} ×</text>"
            )
        y += _ROW
    return y
