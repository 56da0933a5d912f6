# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from support.order import dealt


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize(("long", "others"), [(0, 0), (0, 7), (1, 0), (5, 0), (5, 1), (3, 4), (5, 4160)])
def test_every_part_begins_with_its_share_of_the_long_ones(long: int, others: int, workers: int) -> None:
    given = [f"long {n}" for n in range(long)], [f"other {n}" for n in range(others)]
    made = dealt(*given, workers)
    assert sorted(made) == sorted([*given[0], *given[1]]), "each of them once"
    left = list(made)
    for worker in range(workers):  # as worksteal cuts the list
        part = [left.pop(0) for _ in range(len(left) // (workers - worker))]
        theirs = [name for name in part if name.startswith("long")]
        assert part[: len(theirs)] == theirs
        assert abs(len(theirs) - long / workers) < 1 or long + others < 3 * workers


def test_the_longest_are_not_with_one_worker() -> None:
    assert dealt("ABC", "abcdef", 3) == list("AabBcdCef")
