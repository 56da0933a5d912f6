# SPDX-License-Identifier: Apache-2.0
"""Weighted turns: exact over a period, and never a whole turn away from the exact share before."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.policy.turns import reduced, spread

weights = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@given(weights)
def test_every_member_gets_exactly_its_turns(turns: list[int]) -> None:
    counted = Counter(spread(turns))
    assert [counted[index] for index in range(len(turns))] == turns


@given(weights)
def test_at_no_moment_is_a_member_a_whole_turn_away_from_its_share(turns: list[int]) -> None:
    taken = [0] * len(turns)
    for moment, index in enumerate(spread(turns), start=1):
        taken[index] += 1
        for member, turn in enumerate(turns):
            assert abs(taken[member] - Fraction(moment * turn, sum(turns))) < 1


def test_equal_weights_take_turns_in_order() -> None:
    assert spread([1, 1, 1]) == [0, 1, 2]
    assert spread(reduced([7, 7, 7], 100)) == [0, 1, 2]


def test_a_heavy_member_does_not_come_in_one_burst() -> None:
    assert spread([2, 1, 1]) == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("given_weights", "limit", "turns"),
    [
        ([10, 20, 30], 100, [1, 2, 3]),
        ([10, 20, 30], 6, [1, 2, 3]),
        ([101, 202, 304], 60, [1, 2, 3]),  # 10, 20 and 30 of 60 turns, then divided
        ([1, 100000], 100, [1, 100]),  # nobody falls below one turn
        ([5], 1, [1]),
    ],
)
def test_reduced(given_weights: list[int], limit: int, turns: list[int]) -> None:
    assert reduced(given_weights, limit) == turns


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50), st.integers(50, 1000))
def test_a_period_never_grows_past_its_limit_by_more_than_a_turn_each(given_weights: list[int], limit: int) -> None:
    turns = reduced(given_weights, limit)
    assert min(turns) >= 1
    assert sum(turns) <= limit + len(turns)
