# SPDX-License-Identifier: Apache-2.0
"""The program against the oracle, packet for packet: verdict, bytes and counters."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.dataplane.xdp.abi import Counter
from packet.generate import Generator
from packet.world import FATES, World, furnish
from support.xdp import open_bed

pytestmark = pytest.mark.root

PACKETS = 34_000  # for each way through the program: 102 000 altogether
# What the mixed packets never meet, because it depends on time, load or the host; test_flows.py has it.
ELSEWHERE = {
    Counter.DROP_SOURCE_RATE,
    Counter.DROP_FORWARDING_OFF,
    Counter.DROP_SNAT_FULL,
    Counter.DROP_ANSWER_LIMIT,
    Counter.DROP_FAULT,
    Counter.DROP_CHECKSUM,
}
# Whether the fast path is there, and whether checksums may be unfinished.
WAYS = {"fast": (1, 0), "general": (0, 1), "fast, unfinished": (1, 1)}


@pytest.fixture(params=[*WAYS.values()], ids=[*WAYS])
def mixed(namespace: None, request: pytest.FixtureRequest) -> Iterator[World]:
    fast, unfinished = request.param
    with open_bed(fast_path=fast, hop_ttl=1000 * fast, unfinished_sums=unfinished) as bed:
        yield furnish(World(bed, unfinished=bool(unfinished)))


@pytest.mark.timeout(600)
def test_many_packets_of_mixed_kind(mixed: World) -> None:
    """Services change meanwhile; every fate is met, and enough packets are forwarded."""
    world = mixed
    source = random.Random(20261123)
    generator = Generator(source)
    met: dict[Counter | None, int] = {}
    for number in range(PACKETS):
        if number % 100 == 0:
            world.churn(source)
        fate = world.both(*generator.frame()).counter
        met[fate] = met.get(fate, 0) + 1
    assert met[None] > PACKETS / 10
    assert set(FATES) - ELSEWHERE <= set(met)


@pytest.fixture(scope="module")
def world(namespace: None) -> Iterator[World]:
    with open_bed(hop_ttl=0, unfinished_sums=1) as bed:
        yield furnish(World(bed, unfinished=True))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=st.randoms(use_true_random=False), count=st.integers(1, 25))
def test_a_few_packets_after_each_other(world: World, source: random.Random, count: int) -> None:
    """The same, so that a disagreement shrinks to the packets that matter."""
    world.forget()
    generator = Generator(source)
    for _ in range(count):
        world.both(*generator.frame())
