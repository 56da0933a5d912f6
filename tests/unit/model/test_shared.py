# SPDX-License-Identifier: Apache-2.0
"""Mappings that share with their successors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.model.shared import PARTS, Shared, differing, shared

MAPPINGS = st.dictionaries(st.integers(0, 3 * PARTS), st.integers(0, 2), max_size=40)


@given(MAPPINGS, MAPPINGS, st.sets(st.integers(0, 3 * PARTS)))
def test_it_is_what_a_dictionary_would_be(before: dict[int, int], puts: dict[int, int], deletes: set[int]) -> None:
    after = Shared(before).changed(puts, deletes)
    wanted = {**{key: value for key, value in before.items() if key not in deletes}, **puts}
    assert after == wanted
    assert len(after) == len(wanted)
    assert sorted(after) == sorted(wanted)
    assert sorted(after.values()) == sorted(wanted.values())
    assert dict(after.items()) == wanted
    assert all((key in after, after.get(key)) == (key in wanted, wanted.get(key)) for key in (*before, *puts, *deletes))


@given(MAPPINGS, MAPPINGS)
def test_the_one_before_stays_as_it_was(before: dict[int, int], puts: dict[int, int]) -> None:
    held = Shared(before)
    held.changed(puts, list(before))
    assert held == before


@given(MAPPINGS, MAPPINGS)
def test_what_differs_is_found(one: dict[int, int], other: dict[int, int]) -> None:
    wanted = {key for key in {**one, **other} if one.get(key) != other.get(key)}
    assert differing(Shared(one), Shared(other)) == wanted
    assert differing(one, other) == wanted
    assert differing(Shared(one), Shared(one).changed(other)) == {key for key in wanted if key in other}


@given(MAPPINGS, MAPPINGS)
def test_one_under_another_and_without_it(one: dict[int, int], other: dict[int, int]) -> None:
    assert Shared(one).under(Shared(other)) == {**one, **other}
    rest = Shared(one).without(Shared(other))
    assert rest == {key: value for key, value in one.items() if key not in other}
    assert len(rest) == len(dict(rest))


def test_what_changes_nothing_is_the_same_object() -> None:
    held = Shared({1: "a", 2: "b"})
    assert held.changed({1: "a"}, [7]) is held
    assert shared(held) is held


def test_groups_and_parts_that_did_not_change_are_shared() -> None:
    held = Shared({number: number for number in range(10 * PARTS)})
    after = held.changed({5: -1})
    changed = [pair for pair in zip(held.groups, after.groups, strict=True) if pair[0] is not pair[1]]
    assert len(changed) == 1
    assert sum(one is not other for one, other in zip(*changed[0], strict=True)) == 1


class Asked:
    """A key that counts how often keys were asked for their hash."""

    times = 0

    def __init__(self, number: int) -> None:
        self._number = number

    def __hash__(self) -> int:
        Asked.times += 1
        return self._number


def test_what_is_the_same_in_both_is_not_looked_at() -> None:
    held = Shared({Asked(number): number for number in range(4 * PARTS)})
    new = Asked(5)
    after = held.changed({new: 5})
    Asked.times = 0
    assert len(held.without(held)) == 0
    assert len(held.under(held)) == 4 * PARTS
    assert differing(held, after) == {new}
    assert len(after.without(held)) == 1
    assert len(held.under(after)) == 4 * PARTS + 1
    assert Asked.times < 60  # those of one part, a few times


def test_what_is_taken_away_twice_is_gone_once() -> None:
    assert Shared({1: "a", 2: "b"}).changed({}, [1, 1]) == {2: "b"}


def test_an_entry_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        Shared({1: 1})[2]
