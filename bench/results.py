# SPDX-License-Identifier: Apache-2.0
"""The samples of a run, and what the rows are that are made of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.quiet import Signs
from bench.ratio import Ratio, paired


@dataclass(frozen=True)
class Row:
    """One line of the table; ``bar`` is the least (or, where less is better, the most) ratio to ``over``."""

    name: str
    label: str
    more_is_better: bool
    bar: float | None
    digits: int = 0
    over: str = "haproxy"


@dataclass(frozen=True)
class Layout:
    """One table: its rows, and the contenders that are its columns.

    Attributes:
        ours: Whose ratio is judged.
        again: The same once more: how much two equal things differ (A/A).
        over: Whom the column of ratios is headed by.
        everybody: Whether a second table holds our ratio to each of the others.
        fewest: Undisturbed pairs without which a row is void.
    """

    rows: tuple[Row, ...]
    names: tuple[str, ...]
    ours: str = "fairlead"
    again: str = "fairlead-again"
    over: str = "haproxy"
    everybody: bool = False
    fewest: int = 1


@dataclass(frozen=True)
class Block:
    """One measurement of one contender; ``signs`` None: nothing in it depends on what else runs."""

    what: str
    round: int
    contender: str
    figures: dict[str, float]
    signs: Signs | None

    @property
    def disturbed(self) -> str | None:
        """The reason why it does not count; None when it does."""
        return self.signs.reason if self.signs is not None else None


@dataclass
class Results:
    """All samples: ``rounds`` holds {contender: {row: figure}} of the undisturbed blocks, ``blocks`` all of them."""

    machine: Mapping[str, str]
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
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

    def keep(self, block: Block) -> bool:
        """Note a block; whether it counts."""
        self.blocks.append(block)
        return block.disturbed is None

    def was_timed(self, contender: str, row: str) -> bool:
        """Whether there is any figure that could be disturbed, be it discarded."""
        return any(b.contender == contender and row in b.figures and b.signs is not None for b in self.blocks)

    def values(self, contender: str, row: str) -> list[float]:
        """Figures of all rounds that have them."""
        return [r[contender][row] for r in self.rounds if contender in r and row in r[contender]]

    def median(self, contender: str, row: str) -> float:
        """Median over the rounds; 0 when there is none."""
        found = self.values(contender, row)
        return median(found) if found else 0.0

    def speed(self, contender: str, row: str) -> float:
        """Median over all blocks, disturbed or not: to choose a load by, not to claim; 0 when there is none."""
        found = [b.figures[row] for b in self.blocks if b.contender == contender and row in b.figures]
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
            "discarded": [
                {**asdict(block), "reason": block.disturbed} for block in self.blocks if block.disturbed is not None
            ],
        }
