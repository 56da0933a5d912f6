# SPDX-License-Identifier: Apache-2.0
"""What C fills is slot for slot what the reference fills."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.app.daemon import LIBRARY
from fairlead.dataplane import native
from fairlead.errors import FairleadError
from fairlead.policy import maglev

PRIMES = (2, 3, 7, 13, 31, 61, 127, 251)


@st.composite
def recipes(draw: st.DrawFn) -> tuple[list[tuple[str, int]], list[int], bytes, int]:
    size = draw(st.sampled_from(PRIMES))
    count = draw(st.integers(1, min(size, 40)))
    weights = draw(st.lists(st.integers(1, 256), min_size=count, max_size=count))
    shares = draw(st.lists(st.sampled_from((0, 0, 1, 30, 100, 100, 100)), min_size=count, max_size=count))
    shares[draw(st.integers(0, count - 1))] = draw(st.integers(1, 100))
    members = [(f"192.0.2.{number}:80", weight) for number, weight in enumerate(weights)]
    return members, shares, draw(st.binary(min_size=16, max_size=16)), size


@settings(max_examples=500, deadline=None)
@given(recipes())
def test_c_fills_what_the_reference_fills(recipe: tuple[list[tuple[str, int]], list[int], bytes, int]) -> None:
    assert maglev.fill(*recipe, native.filling(LIBRARY)) == maglev.fill(*recipe)


@pytest.mark.parametrize("live", [1, 2, 50, 99, 100])
@pytest.mark.parametrize("size", [1021, 65537])
def test_large_tables_are_the_same(size: int, live: int) -> None:
    members = [(f"10.0.0.{number}:8080", 1 + number % 3) for number in range(100)]
    shares = [100 if number < live else 0 for number in range(100)]
    seed = b"as large as it gets"[:16]
    assert maglev.fill(members, shares, seed, size, native.filling(LIBRARY)) == maglev.fill(members, shares, seed, size)


def test_a_library_that_is_missing_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(FairleadError, match=r"maglev.so cannot be loaded .*; install fairlead again"):
        native.filling(tmp_path / "maglev.so")
