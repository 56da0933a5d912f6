# SPDX-License-Identifier: Apache-2.0
"""The program against the oracle, packet for packet: verdict, bytes and counters."""

from __future__ import annotations

import pytest
from packet.generate import Generator
from packet.world import World, furnish
from support.xdp import Bed

pytestmark = pytest.mark.root


@pytest.mark.timeout(300)
def test_many_packets_of_mixed_kind(bed: Bed) -> None:
    world = furnish(World(bed))
    generator = Generator(1)
    for _ in range(20000):
        world.both(*generator.frame())
