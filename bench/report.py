# SPDX-License-Identifier: Apache-2.0
"""The table that is made of the samples of a run, and what must be known to read it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from bench.machine import Cpus
from bench.quiet import FOREIGN, SLOW, STOLEN
from bench.ratio import Ratio
from bench.results import Layout, Results, Row

AA_TOLERANCE = 0.03


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


PROXIES = Layout(ROWS, ("fairlead", "haproxy", "haproxy-splice", "nginx", "direct"), fewest=3)


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


def too_few(results: Results, row: Row, layout: Layout, ratio: Ratio | None) -> str:
    """What voids a row of which too little is left, once the disturbed blocks are discarded; empty when enough is."""
    pairs = ratio.rounds if ratio is not None else 0
    both = all(results.was_timed(name, row.name) for name in (layout.ours, row.over))
    return f"void: {pairs} undisturbed pairs" if both and pairs < layout.fewest else ""


def table(results: Results, layout: Layout) -> str:
    """The figures as text; empty when nothing of it was measured."""
    lines = [["", *layout.names, f"of {layout.over} (95 %)", "A/A", "verdict"]]
    for row in layout.rows:
        figures = [results.values(name, row.name) for name in layout.names]
        if not any(figures) and not any(results.was_timed(name, row.name) for name in layout.names):
            continue
        ratio = results.ratio(row.name, row.over, layout.ours)
        control = results.ratio(row.name, layout.again, layout.ours)
        cells = [f"{median(found):,.{row.digits}f}" if found else "-" for found in figures]
        void = control is not None and abs(control.median - 1) > AA_TOLERANCE
        lines.append([
            row.label, *cells, str(ratio or "-"), f"{control.median:.2f}{' void' if void else ''}" if control else "-",
            too_few(results, row, layout, ratio) or verdict(row, ratio),
        ])  # fmt: skip
    if len(lines) == 1:
        return ""
    return "\n\n".join(filter(None, [aligned(lines), _to_everybody(results, layout) if layout.everybody else ""]))


def _to_everybody(results: Results, layout: Layout) -> str:
    others = [name for name in layout.names if name != layout.ours]
    lines = [[f"{layout.ours} as a multiple of", *others]]
    for row in layout.rows:
        ratios = [results.ratio(row.name, other, layout.ours) for other in others]
        if any(ratios):
            lines.append([row.label, *(str(ratio or "-") for ratio in ratios)])
    return aligned(lines) if len(lines) > 1 else ""


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def disturbances(results: Results) -> list[str]:
    """How many blocks were discarded, of which measurement and why."""
    measured = Counter(block.what for block in results.blocks if block.signs is not None)
    why: dict[str, Counter[str]] = {what: Counter() for what in measured}
    for block in results.blocks:
        if block.disturbed is not None:
            why[block.what][block.disturbed] += 1
    parts = [
        f"{what} {sum(reasons.values())} of {measured[what]}"
        + (f" ({', '.join(f'{reason} {count}' for reason, count in reasons.most_common())})" if reasons else "")
        for what, reasons in why.items()
    ]
    if not parts:
        return []
    return [
        f"blocks discarded as disturbed: {'; '.join(parts)}",
        f"foreign: others had more than {FOREIGN:.0%} of a CPU; steal: the hypervisor kept more than {STOLEN:.0%};",
        f"slow: a fixed piece of work took over {SLOW:g} times as long as usual just before or after the block",
    ]


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
    lines += disturbances(results)
    lines.append(f"void: two equal contenders differ by more than {AA_TOLERANCE:.0%}; repeat on a quieter machine")
    return [*lines, *(f"failed: {failure}" for failure in results.failures)]
