# SPDX-License-Identifier: Apache-2.0
"""A measured row, what its figures say, and the table of them. Pure but for printing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AA_TOLERANCE = 0.01


@dataclass(frozen=True)
class Result:
    """One measured row; times in ns a packet, harness included."""

    suite: str
    name: str
    flows: int
    floor: float
    access: float  # the floor with one access to as much memory as the flow table has
    ours: float
    again: float  # the same program loaded a second time
    bar: str
    met: bool | None
    peer: float | None = None
    peer_bar: float | None = None

    @property
    def void(self) -> bool:
        """Whether two equal programs differ by more than is allowed."""
        return abs(self.again / self.ours - 1) > AA_TOLERANCE

    @property
    def share(self) -> float | None:
        """Our time over the floor, as a share of the peer's."""
        return None if self.peer is None else (self.ours - self.floor) / (self.peer - self.floor)

    @property
    def beats(self) -> bool | None:
        """Whether that share is as small as it should be."""
        return None if self.share is None or self.peer_bar is None else self.share <= self.peer_bar


def report(results: Sequence[Result]) -> None:
    """Print the table."""
    verdicts = {None: "", True: " met", False: " MISSED"}
    print(
        f"{'':4}{'row':30}{'flows':>9}{'floor':>7}{'access':>8}{'ours':>7}{'over':>7}{'x floor':>9}{'A/A':>7}"
        f"{'peer':>7}{'share':>7}  bars"
    )
    for r in results:
        times = f"{r.floor:7.0f}{r.access:8.0f}{r.ours:7.0f}{r.ours - r.floor:7.0f}"
        times += f"{r.ours / r.floor:9.2f}{r.again / r.ours:7.3f}"
        peer, bars = f"{'-':>7}{'-':>7}", []
        if r.bar:
            bars.append(r.bar + verdicts[r.met])
        if r.peer is not None:
            peer = f"{r.peer:7.0f}{r.share:7.2f}"
            bars.append(f"<= {r.peer_bar:.2f} of peer{verdicts[r.beats]}")
        if r.void:
            bars.append("(void: A/A differs by more than 1 %)")
        print(f"{r.suite:4}{r.name:30}{r.flows:9}{times}{peer}  {', '.join(bars)}")
