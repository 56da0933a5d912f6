# SPDX-License-Identifier: Apache-2.0
"""Room in the slot memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fairlead.dataplane.xdp.space import REST_S, Extents

STEPS = st.lists(st.tuples(st.sampled_from(("take", "retire", "grow")), st.integers(1, 9)), max_size=40)


@given(STEPS)
def test_room_is_what_nobody_has(steps: list[tuple[str, int]]) -> None:
    extents, held, now = Extents(1), [(1, 0)], 0.0
    for step, number in steps:
        now += REST_S / 3
        if step == "grow":
            extents.grow(extents.capacity + number)
        elif step == "take" and (base := extents.take(number, now)) is not None:
            held.append((base, number))
        elif step == "retire" and len(held) > 1:
            extents.retire(*held.pop(), now)
        assert extents.room == extents.capacity - 1 - sum(units for _, units in held)


def test_what_was_adopted_takes_room() -> None:
    extents = Extents(1)
    extents.grow(100)
    extents.use(40, 10)
    assert extents.room == 89


def test_room_that_rests_is_not_given_out() -> None:
    extents = Extents(11)
    base = extents.take(10, 0.0)
    assert base == 1
    extents.retire(base, 10, 0.0)
    assert extents.room == 10
    assert extents.take(10, REST_S / 2) is None
    assert extents.take(9, REST_S) == base + 1  # for a number is not the one it was
