# SPDX-License-Identifier: Apache-2.0
"""What ``fairlead doctor`` prints for people: one line for each finding, and below it the command that cures it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fairlead.cli.tables import Layout, Row, heads, last, mark, text
from fairlead.model.host import Finding
from fairlead.model.reasons import Severity


def lines(findings: Sequence[Finding], *, colour: bool) -> list[str]:
    """The whole report, with a sum at its end."""
    return [*Layout(colour).lines(_rows(findings)), summary(findings)]


def summary(findings: Sequence[Finding]) -> str:
    """How many findings there are of each kind."""
    count = {severity: sum(it.severity is severity for it in findings) for severity in Severity}
    return f"errors: {count[Severity.ERROR]}, warnings: {count[Severity.WARNING]}, ok: {count[Severity.OK]}"


def _rows(findings: Sequence[Finding]) -> Iterator[Row]:
    yield heads("SEVERITY", "NAME", "SUBJECT", "FINDING")
    for it in findings:
        yield [mark(it.severity), text(it.name), text(it.subject), last(it.message)]
        if it.fix:
            yield [last(""), last(""), last(""), last(f"fix: {it.fix}")]
