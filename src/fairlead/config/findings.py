# SPDX-License-Identifier: Apache-2.0
"""What was found wrong: collected in any order, handed out in file order. Invariant: memory and number are bounded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fairlead.errors import Problem

MAX_PROBLEMS = 1000
# Comparisons that suggestions may cost in one load: 10 000 pools, each misspelt, must not take minutes.
_SUGGESTION_BUDGET = 50_000
_WORD = re.compile("[A-Za-z0-9_-]{1,64}")


class Refused(ValueError):
    """A value is not allowed; the message says what is."""


class Enough(Exception):
    """MAX_PROBLEMS were found; the rest is not worth looking for."""


class Place(NamedTuple):
    """Where something stands: index of its source, 1-based line and column (0: no place). Sorts in file order."""

    source: int
    line: int
    column: int


class Findings:
    """Collects errors and warnings of one load."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._errors: list[tuple[Place, str, str]] = []
        self._warnings: list[tuple[Place, str, str]] = []
        self._spoilt: set[Place] = set()
        self._budget = _SUGGESTION_BUDGET

    @property
    def failed(self) -> bool:
        """Whether an error was found."""
        return bool(self._errors)

    def error(self, place: Place, path: str, message: str) -> None:
        """Record an error, unless the value at ``place`` was spoilt by an earlier one."""
        if place not in self._spoilt:
            self._errors.append((place, path, message))
            if len(self._errors) >= MAX_PROBLEMS:
                raise Enough

    def spoil(self, place: Place, path: str, message: str) -> None:
        """Record an error that makes whatever else would be said about this value pointless."""
        self.error(place, path, message)
        self._spoilt.add(place)

    def warn(self, place: Place, path: str, message: str) -> None:
        """Record a warning; past MAX_PROBLEMS they are dropped."""
        if len(self._warnings) < MAX_PROBLEMS:
            self._warnings.append((place, path, message))

    def suggestion(self, word: str, choices: Iterable[str]) -> str:
        """``"; did you mean `x`?"``, or nothing when no choice is near."""
        candidates = list(choices)
        self._budget -= len(candidates)
        return did_you_mean(word, candidates) if self._budget >= 0 else ""

    def written(self, place: Place) -> str:
        """FILE:LINE:COLUMN, for messages that name a second place."""
        return f"{self._names[place.source]}:{place.line}:{place.column}" if place.line else self._names[place.source]

    def errors(self) -> tuple[Problem, ...]:
        """Every error in file order; the last one says so when there were more than MAX_PROBLEMS."""
        problems = self._ordered(self._errors)
        if len(self._errors) >= MAX_PROBLEMS:
            last = problems[-1]
            more = f"there are more problems; only {MAX_PROBLEMS} are shown"
            problems += (Problem(last.file, last.line, last.column, "", more),)
        return problems

    def warnings(self) -> tuple[Problem, ...]:
        """Every warning in file order."""
        return self._ordered(self._warnings)

    def _ordered(self, found: list[tuple[Place, str, str]]) -> tuple[Problem, ...]:
        return tuple(
            Problem(self._names[place.source], place.line, place.column, path, message)
            for place, path, message in sorted(set(found))
        )


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean `x`?"`` with the nearest choice, or nothing."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word[:64].lower(), by_lower, n=1)
    return f"; did you mean `{by_lower[near[0]]}`?" if near else ""


def step(name: str) -> str:
    """One more step of a path; names with dots or worse in them are quoted."""
    return f".{name}" if _WORD.fullmatch(name) else f'."{shown(name)[1:-1]}"'


def shown(value: object) -> str:
    """Show a value from a file in a message: one line, bounded, in backticks."""
    if value is None:
        return "an empty value"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    cut = text if len(text) <= 64 else text[:61] + "..."
    return "`" + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut) + "`"
