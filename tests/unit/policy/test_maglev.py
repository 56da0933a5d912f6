# SPDX-License-Identifier: Apache-2.0
"""Maglev against the paper, and the promises about shares and disruption."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from fairlead.policy import maglev
from fairlead.policy.maglev import Claim, Permutation
from support.models import SEED

SIZE = 65537


def members(count: int, weight: int = 1) -> list[Claim]:
    return [(f"10.0.{index // 250}.{index % 250}:80", weight) for index in range(count)]


def populate_as_in_the_paper(permutations: Sequence[Permutation], size: int) -> list[int]:
    """The paper's pseudocode 1, word for word: whole permutations and a ``next`` for each member."""
    permutation = [[(offset + j * skip) % size for j in range(size)] for offset, skip in permutations]
    following = [0] * len(permutations)
    entry = [-1] * size
    filled = 0
    while True:
        for i in range(len(permutations)):
            candidate = permutation[i][following[i]]
            while entry[candidate] >= 0:
                following[i] += 1
                candidate = permutation[i][following[i]]
            entry[candidate] = i
            following[i] += 1
            filled += 1
            if filled == size:
                return entry


class TestPaper:
    """Table 1 of the paper: three members, seven slots; B0 prefers 3 0 4 1 5 2 6, B1 0 2 4 6 1 3 5, B2 3 4 5 ..."""

    B0, B1, B2 = (3, 4), (0, 2), (3, 1)

    def test_table_of_all_three(self) -> None:
        assert maglev.populate([self.B0, self.B1, self.B2], [1, 1, 1], 7).tolist() == [1, 0, 1, 0, 2, 2, 0]

    def test_table_without_b1(self) -> None:
        assert maglev.populate([self.B0, self.B2], [1, 1], 7).tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 191), (3, 193), (7, 251), (50, 1021), (100, 2039), (5, 4093)])
def test_populate_equals_the_pseudocode(count: int, size: int) -> None:
    permutations = [maglev.permutation(identity, SEED, size) for identity, _ in members(count)]
    assert maglev.populate(permutations, [1] * count, size).tolist() == populate_as_in_the_paper(permutations, size)


def test_shares_are_within_one_percent_of_equal_weights() -> None:
    shares = Counter(maglev.fill(members(100), [100] * 100, SEED, SIZE))
    assert all(abs(shares[index] / (SIZE / 100) - 1) < 0.01 for index in range(100))


def test_shares_are_within_one_percent_of_different_weights() -> None:
    weights = [1 + index % 4 for index in range(100)]
    claims = [(identity, weight) for (identity, _), weight in zip(members(100), weights, strict=True)]
    shares = Counter(maglev.fill(claims, [100] * 100, SEED, SIZE))
    exact = [SIZE * weight / sum(weights) for weight in weights]
    assert all(abs(shares[index] / exact[index] - 1) < 0.01 for index in range(100))


def test_heavy_weights_leave_everybody_a_slot() -> None:
    claims = [("10.0.0.1:80", 1_000_000), *members(99)[1:]]
    shares = Counter(maglev.fill(claims, [100] * len(claims), SEED, SIZE))
    assert min(shares[index] for index in range(len(claims))) >= 1


def live_without(count: int, *dead: int) -> list[int]:
    return [0 if index in dead else 100 for index in range(count)]


@pytest.mark.parametrize("dead", [(0,), (99,), (3, 4, 5), tuple(range(60)), tuple(range(1, 99))])
def test_only_slots_of_dead_members_move(dead: tuple[int, ...]) -> None:
    claims = members(100)
    before = maglev.fill(claims, [100] * 100, SEED, SIZE)
    after = maglev.fill(claims, live_without(100, *dead), SEED, SIZE)
    assert not set(after) & set(dead)
    assert all(old == new for old, new in zip(before, after, strict=True) if old not in dead)


def test_a_second_death_moves_only_its_own_slots_and_a_return_only_those() -> None:
    claims = members(20)
    one = maglev.fill(claims, live_without(20, 3), SEED, SIZE)
    two = maglev.fill(claims, live_without(20, 3, 11), SEED, SIZE)
    moved = [slot for slot in range(SIZE) if one[slot] != two[slot]]
    assert {one[slot] for slot in moved} == {11}
    assert len(moved) == Counter(one)[11]
    returned = maglev.fill(claims, live_without(20, 11), SEED, SIZE)
    changed = [slot for slot in range(SIZE) if two[slot] != returned[slot]]
    assert {returned[slot] for slot in changed} == {3}


def test_slots_of_the_dead_are_spread_by_weight() -> None:
    claims = [*members(10), ("10.1.0.1:80", 5)]
    before = Counter(maglev.fill(claims, [100] * 11, SEED, SIZE))
    after = Counter(maglev.fill(claims, live_without(11, 0), SEED, SIZE))
    won = [after[index] - before[index] for index in range(1, 11)]
    assert won[-1] == pytest.approx(before[0] * 5 / 14, rel=0.1)
    assert all(gain == pytest.approx(before[0] / 14, rel=0.25) for gain in won[:-1])


def test_a_slot_asks_in_the_same_order_from_either_side() -> None:
    """Few dead are walked from their side, many from the side of the living: both must follow the same levels."""
    claims, size = members(10), 1021
    base = maglev.fill(claims, [100] * 10, SEED, size)
    for dead in (2, 5, 8):
        live = live_without(10, *range(dead))
        expected = list(base)
        for slot, owner in enumerate(base):
            levels = maglev.levels(SEED, size)
            while not live[expected[slot]]:
                scale, shift = next(levels)
                expected[slot] = base[(slot - shift) * pow(scale, -1, size) % size]
            assert bool(live[owner]) is (expected[slot] == owner)
        assert list(maglev.fill(claims, live, SEED, size)) == expected


def test_another_seed_gives_another_table() -> None:
    assert maglev.fill(members(5), [100] * 5, SEED, 251) != maglev.fill(members(5), [100] * 5, bytes(16), 251)


def test_the_only_live_member_gets_everything() -> None:
    assert set(maglev.fill(members(3), [0, 100, 0], SEED, 251)) == {1}


def _walk(steps: int, size: int) -> float:
    """CPU time of this many steps of the walk that fills a table: what this machine's Python takes for it."""
    taken, slot, skip = bytearray(b"\1") * size, 0, 12345
    start = time.process_time()
    for _ in range(steps):
        if taken[slot]:
            slot += skip
            if slot >= size:
                slot -= size
    return time.process_time() - start


@pytest.mark.serial
@pytest.mark.parametrize("count", [100, 1000])
def test_a_table_is_built_in_few_steps(count: int) -> None:
    """About size * ln(size) steps, which the last slots alone would take if each were walked to."""
    ratios = []
    for seed in (b"1" * 16, b"2" * 16, b"3" * 16):
        expected = _walk(int(SIZE * math.log(SIZE)), SIZE)
        start = time.process_time()
        maglev.fill(members(count), [100] * count, seed, SIZE)
        ratios.append((time.process_time() - start) / expected)
    assert min(ratios) < 2.2


def test_the_table_is_the_same_on_every_node() -> None:
    """Another result moves flows between nodes of different versions: whoever changes it must mean it."""
    table = maglev.fill(members(3), [100, 0, 100], SEED, 13)
    assert table.tolist() == [2, 2, 2, 0, 0, 2, 0, 0, 2, 0, 2, 0, 0]


@pytest.mark.parametrize("others", [100, 50])
def test_a_share_that_grows_takes_slots_back_and_moves_no_other(others: int) -> None:
    claims = members(10)
    own = {slot for slot, owner in enumerate(maglev.fill(claims, [100] * 10, SEED, SIZE)) if owner == 9}
    before = maglev.fill(claims, [others] * 9 + [0], SEED, SIZE)
    for share in range(10, 101, 10):
        after = maglev.fill(claims, [others] * 9 + [share], SEED, SIZE)
        moved = {slot for slot, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
        assert moved
        assert all(after[slot] == 9 for slot in moved)
        assert others < 100 or moved <= own
        assert Counter(after)[9] == pytest.approx(SIZE * share / (9 * others + share), rel=0.05)
        before = after


def test_small_shares_of_few_slots_still_give_a_table() -> None:
    assert set(maglev.fill(members(3), [1, 1, 0], SEED, 3)) == {0, 1}
