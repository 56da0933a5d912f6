# SPDX-License-Identifier: Apache-2.0
"""Recipes, digests and slots of LookupTables."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from fairlead.errors import ContractViolation
from fairlead.model.pool import AdminState
from fairlead.model.service import Scheduler, WhenAllDown
from fairlead.policy import tables
from fairlead.policy.members import Choice, choose, standing, usable
from fairlead.policy.runtime import Override, Runtime
from support import models
from support.models import SEED, table_spec


def choice(*weights: int, drained: int | None = None, runtime: Runtime | None = None) -> Choice:
    """Servers 10.0.0.1:80, 10.0.0.2:80 ... of these weights; the one at ``drained`` takes no new flows."""
    servers = [
        models.server(f"10.0.0.{n}:80", weight=weight, state=AdminState.DRAIN if n == drained else AdminState.READY)
        for n, weight in enumerate(weights, start=1)
    ]
    pool = models.pool(*servers)
    held = runtime or Runtime()
    members = [standing(held, 0.0, f"web/{it.name}", pool, it) for it in servers]
    return choose(members, usable(members), pool.quorum, WhenAllDown.REJECT)


@pytest.mark.parametrize("scheduler", [Scheduler.MAGLEV, Scheduler.SH, Scheduler.RANDOM])
def test_maglev_sh_and_random_share_a_recipe_over_all_members(scheduler: Scheduler) -> None:
    recipe = tables.recipe(scheduler, SEED, choice(1, 2, 3, drained=2))
    assert (recipe.scheduler, recipe.size, recipe.seed) == (Scheduler.MAGLEV, 65537, SEED)
    assert [(it.identity, it.weight) for it in recipe.members] == [
        ("10.0.0.1:80", 1), ("10.0.0.2:80", 2), ("10.0.0.3:80", 3),
    ]  # fmt: skip
    assert recipe.live == {"web/10.0.0.1:80", "web/10.0.0.3:80"}


@pytest.mark.parametrize("scheduler", [Scheduler.RR, Scheduler.LC, Scheduler.WLC])
def test_rr_lc_and_wlc_share_one_slot_for_each_live_server(scheduler: Scheduler) -> None:
    recipe = tables.recipe(scheduler, SEED, choice(1, 2, 3, drained=2))
    assert recipe.size == 2
    assert [it.key for it in recipe.members] == ["web/10.0.0.1:80", "web/10.0.0.3:80"]
    assert tables.build(recipe).tolist() == [0, 1]


def test_rr_does_not_change_with_weights_or_the_seed() -> None:
    one = tables.recipe(Scheduler.RR, SEED, choice(1, 2))
    other = tables.recipe(Scheduler.RR, bytes(16), choice(2, 1))
    assert tables.digest(one) == tables.digest(other)


def test_wrr_has_one_period_of_weighted_turns() -> None:
    recipe = tables.recipe(Scheduler.WRR, SEED, choice(20, 10, 10))
    assert recipe.size == 4
    assert tables.build(recipe).tolist() == [0, 1, 0, 2]


def test_a_wrr_period_is_bounded() -> None:
    recipe = tables.recipe(Scheduler.WRR, SEED, choice(65535, 65534, 1))
    assert recipe.size <= tables.MAX_PERIOD + 3
    slots = tables.build(recipe)
    assert len(slots) == recipe.size
    assert Counter(slots)[2] == 1


def test_a_server_with_weight_0_in_the_file_is_no_member() -> None:
    recipe = tables.recipe(Scheduler.MAGLEV, SEED, choice(1, 0, 3))
    assert [it.key for it in recipe.members] == ["web/10.0.0.1:80", "web/10.0.0.3:80"]


def test_weight_0_at_run_time_moves_only_that_servers_slots() -> None:
    zero = Runtime(overrides={"web/10.0.0.2:80": Override(None, 0, AdminState.READY, 2)})
    before = tables.build(tables.recipe(Scheduler.MAGLEV, SEED, choice(1, 2, 3)))
    after = tables.build(tables.recipe(Scheduler.MAGLEV, SEED, choice(1, 2, 3, runtime=zero)))
    assert {old for old, new in zip(before, after, strict=True) if old != new} == {1}
    assert set(after) == {0, 2}


class TestDigest:
    base = table_spec({"a": 1, "b": 2})

    def test_is_32_hex_digits(self) -> None:
        assert len(bytes.fromhex(tables.digest(self.base))) == 16

    def test_does_not_depend_on_the_order_of_a_set(self) -> None:
        keys = [f"web/{name}" for name in "abcdefgh"]
        one = table_spec(dict.fromkeys("abcdefgh", 1))
        other = replace(one, live=frozenset(reversed(keys)))
        assert tables.digest(one) == tables.digest(other)

    @pytest.mark.parametrize(
        "other",
        [
            table_spec({"a": 1, "b": 3}),
            table_spec({"b": 2, "a": 1}),
            table_spec({"a": 1, "b": 2}, dead=frozenset({"b"})),
            table_spec({"a": 1, "b": 2}, size=251),
            table_spec({"a": 1, "b": 2}, seed=bytes(16)),
            table_spec({"a": 1, "b": 2}, scheduler=Scheduler.WRR),
            table_spec({"a": 1, "b": 2, "c": 1}),
        ],
    )
    def test_differs_where_the_recipe_does(self, other: object) -> None:
        assert isinstance(other, type(self.base))
        assert tables.digest(other) != tables.digest(self.base)


class TestBuild:
    def test_names_members_by_their_place(self) -> None:
        recipe = table_spec({"a": 1, "b": 1, "c": 1}, dead=frozenset({"b"}), size=251)
        assert set(tables.build(recipe)) == {0, 2}

    @pytest.mark.parametrize("scheduler", [Scheduler.RR, Scheduler.WRR, Scheduler.LC])
    def test_names_no_dead_member(self, scheduler: Scheduler) -> None:
        recipe = table_spec({"a": 1, "b": 1, "c": 1}, dead=frozenset({"b"}), size=2, scheduler=scheduler)
        assert tables.build(recipe).tolist() == [0, 2]

    def test_refuses_a_table_without_a_live_member(self) -> None:
        with pytest.raises(ContractViolation, match="live member"):
            tables.build(table_spec({"a": 1}, dead=frozenset({"a"})))

    @pytest.mark.parametrize(
        ("scheduler", "dead"), [(Scheduler.RR, ""), (Scheduler.MAGLEV, ""), (Scheduler.MAGLEV, "a")]
    )
    def test_refuses_more_members_than_slots(self, scheduler: Scheduler, dead: str) -> None:
        """Dead members of a Maglev table need slots too: what they leave is what the living get."""
        with pytest.raises(ContractViolation, match="3 members do not fit a table of 2 slots"):
            tables.build(table_spec({"a": 1, "b": 1, "c": 1}, dead=frozenset(dead), size=2, scheduler=scheduler))

    def test_refuses_more_members_than_16_bits_can_name(self) -> None:
        many = table_spec({str(n): 1 for n in range(tables.MAX_MEMBERS + 1)}, scheduler=Scheduler.RR, size=65536)
        with pytest.raises(ContractViolation, match="65536 members"):
            tables.build(many)
