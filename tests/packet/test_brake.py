# SPDX-License-Identifier: Apache-2.0
"""Under the brake, a flow of a settled service needs no look at the flow table: it would say what the slot says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.abi import Counter
from fairlead.dataplane.xdp.settle import Settler
from packet.settled import FOR_EVER, MARKS, SERVERS, SLOTS, VIP, begin, client, entries, put, send, seven, slot, word
from packet.world import World
from support.packets import ACK, SYN, tcp_frame
from support.wait import until
from support.xdp import Bed, open_bed

pytestmark = pytest.mark.root

BRAKED = abi.Settings(brake=1)  # one flow is stored in a window
FLOWS = range(1, 41)


@pytest.fixture(scope="module")
def bed(namespace: None) -> Iterator[Bed]:
    with open_bed(hop_ttl=1000, entries=1024, words=1, touch_shift=FOR_EVER) as opened:
        yield opened


@pytest.fixture
def world(bed: Bed) -> World:
    """With flows that are open."""
    world = seven(bed, abi.Settings())
    begin(world, *FLOWS)
    return world


def named(number: int) -> int:
    """The server that a flow's slot names."""
    return SERVERS[SLOTS[slot(client(number))]]


def open_again(world: World) -> tuple[list[int], int]:
    """The servers that a SYN with the ports of each flow goes to in a flood of others; and how many were not stored."""
    world.bed.settings(BRAKED)
    went, stateless = [], 0
    for number in FLOWS:
        world.bed.send(tcp_frame(f"198.51.100.1:{number}", VIP, SYN))
        before = world.bed.counters()
        went.append(world.bed.send(tcp_frame(client(number), VIP, SYN)).packet[5] - 9)
        news = {it: world.bed.counters()[it] - before[it] for it in (Counter.NEW_FLOW, Counter.NEW_STATELESS)}
        assert sum(news.values()) == 1
        stateless += news[Counter.NEW_STATELESS]
    world.bed.settings()
    world.resume()
    return went, stateless


def states(world: World) -> list[int]:
    """Of the flows' entries."""
    flood = ip_address("198.51.100.1").packed
    return [entry.state for _, entry in entries(world) if entry.src != flood]


def test_what_the_table_would_say_is_not_looked_up(world: World, settler: Settler) -> None:
    world.settle(settler)
    assert not word(world) & MARKS
    went, stateless = open_again(world)
    assert went == [named(number) for number in FLOWS]
    assert stateless > len(FLOWS) // 2  # a window ends now and then
    assert states(world).count(abi.State.OPEN) == stateless
    assert [send(world, number) for number in FLOWS] == went


def test_without_the_brake_every_flow_is_stored(world: World, settler: Settler) -> None:
    world.settle(settler)
    for number in FLOWS:
        send(world, number, SYN)
    assert set(states(world)) == {abi.State.NEW}


@pytest.mark.parametrize("settled", [True, False])
def test_where_strays_are_and_before_a_service_is_settled_it_is(
    world: World, settler: Settler, *, settled: bool
) -> None:
    """Each new connection goes to its slot's server, whichever had the one before, and stays there."""
    world.service(1, "nat", SERVERS, tuple((n + 1) % 7 for n in SLOTS))
    if settled:
        world.settle(settler)
        assert word(world) & MARKS
    went, stateless = open_again(world)
    assert went == [named(number) % 7 + 1 for number in FLOWS]
    assert stateless == 0
    assert [world.bed.send(tcp_frame(client(number), VIP, ACK)).packet[5] - 9 for number in FLOWS] == went


def test_a_conversation_without_the_vip_is_a_stray(world: World, settler: Settler) -> None:
    """Its packets go to the node itself, as they did when its address was no VIP yet."""
    ((at, entry), *_) = entries(world)
    put(world, at, replace(entry, kind=abi.Kind.DIRECT))
    world.settle(settler)
    assert word(world) & MARKS


def test_after_the_flood_flows_are_stored_again(world: World, settler: Settler) -> None:
    """Also if nothing but flows of settled services comes to notice that the window is another one."""
    world.settle(settler)
    world.bed.settings(BRAKED)
    for number in range(3):
        world.bed.send(tcp_frame(f"198.51.100.1:{number}", VIP, SYN))

    def is_stored() -> bool:
        world.bed.send(tcp_frame(client(1), VIP, SYN))
        return abi.State.NEW in states(world)

    until(is_stored, 2, "it is stored")
