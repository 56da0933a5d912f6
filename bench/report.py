# SPDX-License-Identifier: Apache-2.0
"""The samples of a run and the table made of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.machine import Cpus
from bench.ratio import Ratio, paired

AA_TOLERANCE = 0.03


@dataclass(frozen=True)
class Row:
    """One line of the table; ``bar`` is the least (or, where less is better, the most) ratio to ``over``."""

    name: str
    label: str
    more_is_better: bool
    bar: float | None
    digits: int = 0
    over: str = "haproxy"


ROWS = (
    Row("conn_rate", "new connections/s", True, 0.85),
    Row("request_rate", "keep-alive requests/s", True, 0.85),
    Row("p50_us", "latency p50, us", False, None),
    Row("p99_us", "latency p99, us", False, 1.3),
    Row("p50_added_us", "  p50 added over direct, us", False, None),
    Row("p99_added_us", "  p99 added over direct, us", False, None),
    Row("conn_cpu_us", "CPU per connection, us", False, None, 1),
    Row("request_cpu_us", "CPU per request, us", False, None, 1),
    Row("conn_calls", "system calls per connection", False, None, 1),
    Row("request_calls", "system calls per request", False, None, 1),
    Row("bulk_rate", "bulk, MB/s", True, 0.9),
    Row("bulk_cpu_us", "CPU per bulk MB, us", False, None),
    Row("storm_ms", "storm of connections, ms", False, None, 1),
    Row("datagram_rate", "UDP requests/s (of nginx)", True, 0.85, over="nginx"),
    Row("datagram_cpu_us", "CPU per UDP request, us", False, None, 1, over="nginx"),
    Row("datagram_loss", "UDP requests lost, per million", False, None, over="nginx"),
    Row("idle_bytes", "memory per idle connection, B", False, 1.0),
)


@dataclass(frozen=True)
class Layout:
    """One table: its rows, and the contenders that are its columns.

    Attributes:
        ours: Whose ratio is judged.
        again: The same once more: how much two equal things differ (A/A).
        over: Whom the column of ratios is headed by.
        everybody: Whether a second table holds our ratio to each of the others.
    """

    rows: tuple[Row, ...]
    names: tuple[str, ...]
    ours: str = "fairlead"
    again: str = "fairlead-again"
    over: str = "haproxy"
    everybody: bool = False


PROXIES = Layout(ROWS, ("fairlead", "haproxy", "haproxy-splice", "nginx", "direct"))


@dataclass
class Results:
    """All samples, round by round: ``rounds`` holds {contender: {row: figure}}."""

    machine: Mapping[str, str]
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, found: dict[str, dict[str, float]]) -> None:
        """Keep one round; latency is also kept as what it adds to the direct connection's in that round."""
        direct = found.get("direct", {})
        for figures in found.values():
            for name in ("p50", "p99"):
                if f"{name}_us" in figures and f"{name}_us" in direct and figures is not direct:
                    figures[f"{name}_added_us"] = figures[f"{name}_us"] - direct[f"{name}_us"]
        self.rounds.append(found)

    def values(self, contender: str, row: str) -> list[float]:
        """Figures of all rounds that have them."""
        return [r[contender][row] for r in self.rounds if contender in r and row in r[contender]]

    def median(self, contender: str, row: str) -> float:
        """Median over the rounds; 0 when there is none."""
        found = self.values(contender, row)
        return median(found) if found else 0.0

    def ratio(self, row: str, over: str, of: str = "fairlead") -> Ratio | None:
        """Paired over the rounds in which both were measured."""
        both = [(r[of][row], r[over][row]) for r in self.rounds if row in r.get(of, {}) and row in r.get(over, {})]
        return paired([a for a, _ in both], [b for _, b in both]) if both else None

    def document(self, layouts: Sequence[Layout]) -> dict[str, Any]:
        """Everything, for the JSON file."""
        return {
            "machine": dict(self.machine),
            "notes": self.notes,
            "failures": self.failures,
            "medians": {
                row.name: {name: self.median(name, row.name) for name in (*layout.names, layout.again)}
                for layout in layouts
                for row in layout.rows
            },
            "rounds": self.rounds,
        }


def verdict(row: Row, ratio: Ratio | None) -> str:
    """Whether the bar is met, by the median; a win needs the whole interval on the good side."""
    if ratio is None:
        return ""
    if (ratio.low >= 1.05) if row.more_is_better else (ratio.high <= 1 / 1.05):
        word = "win"
    elif (ratio.high < 1) if row.more_is_better else (ratio.low > 1):
        word = "loss"
    else:
        word = "even"
    if row.bar is None:
        return word
    met = ratio.median >= row.bar if row.more_is_better else ratio.median <= row.bar
    return f"{word}, bar {row.bar:g} {'met' if met else 'MISSED'}"


def table(results: Results, layout: Layout) -> str:
    """The figures as text; empty when nothing of it was measured."""
    lines = [["", *layout.names, f"of {layout.over} (95 %)", "A/A", "verdict"]]
    for row in layout.rows:
        figures = [results.values(name, row.name) for name in layout.names]
        if not any(figures):
            continue
        ratio = results.ratio(row.name, row.over, layout.ours)
        control = results.ratio(row.name, layout.again, layout.ours)
        cells = [f"{median(found):,.{row.digits}f}" if found else "-" for found in figures]
        void = control is not None and abs(control.median - 1) > AA_TOLERANCE
        lines.append([
            row.label, *cells, str(ratio or "-"), f"{control.median:.2f}{' void' if void else ''}" if control else "-",
            verdict(row, ratio),
        ])  # fmt: skip
    if len(lines) == 1:
        return ""
    return aligned(lines) + ("\n\n" + _to_everybody(results, layout) if layout.everybody else "")


def _to_everybody(results: Results, layout: Layout) -> str:
    others = [name for name in layout.names if name != layout.ours]
    lines = [[f"{layout.ours} as a multiple of", *others]]
    for row in layout.rows:
        ratios = [results.ratio(row.name, other, layout.ours) for other in others]
        if any(ratios):
            lines.append([row.label, *(str(ratio or "-") for ratio in ratios)])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def machine_line(results: Results) -> str:
    """What ran where."""
    return ", ".join(f"{name} {value}" for name, value in results.machine.items())


def remarks(results: Results, cpus: Cpus) -> list[str]:
    """What must be known to read the tables."""
    lines = [
        machine_line(results),
        f"load and servers on CPU {sorted(cpus.load)}, load balancers on CPU {sorted(cpus.balancer)}",
        "figures are medians over rounds, ratios are paired within rounds",
    ]
    if rate := results.notes.get("latency_rate_per_second"):
        held = results.notes.get("idle_connections", 0)
        lines.append(
            f"latency at {rate:,.0f} requests/s, from the moment each was due; memory (PSS) at {held:,.0f} connections"
        )
    if storm := results.notes.get("storm_connections"):
        lines.append(f"storm: {storm:,.0f} clients connect in one moment; until the last one has its answer")
    idle = [f["_load_idle"] for r in results.rounds for n, f in r.items() if n != "direct" and "_load_idle" in f]
    foreign = [f["_foreign"] for r in results.rounds for f in r.values() if "_foreign" in f]
    if idle:
        lines.append(
            f"CPU of the load: median idle {median(idle):.0%} under a proxy (under 10 % the generator is the limit); "
            f"CPU of the balancers used by others: median {median(foreign):.0%}, most {max(foreign):.0%}"
        )
    lines.append(f"void: two equal contenders differ by more than {AA_TOLERANCE:.0%}; repeat on a quieter machine")
    return [*lines, *(f"failed: {failure}" for failure in results.failures)]
