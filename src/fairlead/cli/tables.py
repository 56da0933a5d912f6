# SPDX-License-Identifier: Apache-2.0
"""Aligned columns and numbers for people.

Invariant: text from a daemon or a server reaches the terminal without control characters, so that a hostile
answer to a probe cannot drive it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_COLOURS = {"good": "\x1b[32m", "bad": "\x1b[31m", "warn": "\x1b[33m", "head": "\x1b[1m"}
_RESET = "\x1b[0m"
_MARKS = {
    "up": "good",
    "down": "bad",
    "degraded": "warn",
    "drain": "warn",
    "maint": "warn",
    "no": "bad",
    "ok": "good",
    "warning": "warn",
    "error": "bad",
}


class Cell(NamedTuple):
    """Text, how it stands in its column, and the role of its colour (empty: none)."""

    text: str
    right: bool = False
    role: str = ""


Row = Sequence[Cell]


@dataclass(slots=True)
class Layout:
    """Lays rows out; widths only grow, so that a later page stays in line with an earlier one.

    Attributes:
        colour: Whether the output understands it.
        width: Columns of the screen when lines must not wrap, else None.
    """

    colour: bool = False
    width: int | None = None
    _widths: list[int] = field(default_factory=list)

    def lines(self, rows: Iterable[Row]) -> list[str]:
        """One line per row."""
        laid = list(rows)
        for row in laid:
            self._widths += [0] * (len(row) - len(self._widths))
            for index, cell in enumerate(row[:-1]):
                self._widths[index] = max(self._widths[index], len(cell.text))
        return [self._line(row) for row in laid]

    def _line(self, row: Row) -> str:
        parts: list[str] = []
        used = 0
        for index, cell in enumerate(row):
            last = index == len(row) - 1
            width = 0 if last else self._widths[index]
            text = cell.text.rjust(width) if cell.right else cell.text.ljust(width)
            if not last:
                text += " "
            if self.width is not None:
                text = text[: max(0, self.width - used)]
            used += len(text)
            parts.append(f"{_COLOURS[cell.role]}{text}{_RESET}" if self.colour and cell.role and text.strip() else text)
        return "".join(parts).rstrip()


def text(value: object) -> Cell:
    """A left-aligned cell."""
    return Cell(printable("-" if value is None or value == "" else str(value)))


def last(value: object) -> Cell:
    """A cell at the end of a line, which may be empty."""
    return Cell(printable(str(value)))


def mark(word: str) -> Cell:
    """A state, in the colour that fits it."""
    shown = "-" if word == "none" else printable(word)
    return Cell(shown, role=_MARKS.get(word, ""))


def number(value: int) -> Cell:
    """A count, right-aligned."""
    return Cell(count(value), right=True)


def octets(value: int) -> Cell:
    """An amount of data, right-aligned."""
    return Cell(size(value), right=True)


def heads(*names: str) -> Row:
    """The first line of a table; a name that begins with ``>`` stands over right-aligned cells."""
    return [Cell(name.removeprefix(">"), right=name.startswith(">"), role="head") for name in names]


def printable(value: str) -> str:
    """``value`` on one line, with a question mark for whatever a terminal could obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in value)


def count(value: int) -> str:
    """12345678 as 12.3M; numbers that are read at a glance stay whole."""
    return str(value) if value < 100_000 else _scaled(value, 1000, ("k", "M", "G", "T"))


def size(value: int) -> str:
    """Octets with a binary unit."""
    return f"{value}B" if value < 1024 else _scaled(value, 1024, ("KiB", "MiB", "GiB", "TiB", "PiB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    step = 0
    scaled = value / base
    while scaled >= base - 0.5 and step < len(units) - 1:
        scaled /= base
        step += 1
    return f"{scaled:.1f}{units[step]}" if scaled < 99.95 else f"{scaled:.0f}{units[step]}"


def duration(seconds: float) -> str:
    """Seconds as the two largest units."""
    if seconds < 0.0995:
        return f"{max(seconds, 0) * 1000:.1f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for unit, length, part, part_length in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length}{unit}{whole % length // part_length:02d}{part}"
    return f"{whole}s"
