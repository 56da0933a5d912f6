# SPDX-License-Identifier: Apache-2.0
"""Numbers for people, and columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.cli.tables import Cell, Layout, count, duration, heads, last, mark, number, printable, size, text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (99_999, "99999"),
        (100_000, "100k"),
        (123_456, "123k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (12_345_678, "12.3M"),
        (2**63, "9223372T"),
    ],
)
def test_counts(value: int, shown: str) -> None:
    assert count(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0KiB"),
        (102_348, "99.9KiB"),
        (102_400, "100KiB"),
        (1024**2 - 1, "1.0MiB"),
        (5 * 1024**3, "5.0GiB"),
    ],
)
def test_sizes(value: int, shown: str) -> None:
    assert size(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0ms"),
        (-5, "0.0ms"),
        (0.0012, "1.2ms"),
        (0.0994, "99.4ms"),
        (0.0995, "0.1s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86_399, "23h59m"),
        (90_000, "1d01h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.text())
def test_nothing_printable_obeys(value: str) -> None:
    shown = printable(value)
    assert len(shown) == len(value)
    assert shown.isprintable()


def test_columns_stay_in_line_over_pages() -> None:
    layout = Layout()
    assert layout.lines([heads("A", ">N", "Z"), [text("long name"), number(5), last("")]]) == [
        "A         N Z",
        "long name 5",
    ]
    assert layout.lines([[text("b"), number(100), last("z")]]) == ["b         100 z"]


def test_lines_fit_a_screen() -> None:
    layout = Layout(colour=True, width=8)
    assert layout.lines([[mark("up"), text("abc"), last("xyz")], [mark("down"), text("d"), last("")]]) == [
        "\x1b[32mup   \x1b[0mabc",
        "\x1b[31mdown \x1b[0md",
    ]


def test_empty_values() -> None:
    assert text(None) == text("") == Cell("-")
    assert last("") == Cell("")
    assert mark("none").text == "-"
