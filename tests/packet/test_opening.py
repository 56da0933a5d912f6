# SPDX-License-Identifier: Apache-2.0
"""What opens a connection: by the fast path where nothing is asked of it, and by the general one to the same end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.abi import Counter
from fairlead.dataplane.xdp.flows import TABLES
from packet.world import World
from support.oracle.nouns import PASS, REDIRECT
from support.packets import ACK, FIN, SYN, TCP, ends, frame, packet, tcp, tcp_frame, unfinished
from support.wait import until
from support.xdp import Bed, flows_of, open_bed

SERVERS = tuple(range(1, 8))
SLOTS = tuple(n % 7 for n in range(251))
VIP, CLIENT = "10.0.0.100:80", "192.0.2.1:1000"
OPENS = tcp_frame(CLIENT, VIP, SYN)


@pytest.fixture(scope="module", params=[1, 0], ids=["fast", "general"])
def bed(namespace: None, request: pytest.FixtureRequest) -> Iterator[Bed]:
    with open_bed(fast_path=request.param, hop_ttl=1000 * request.param, unfinished_sums=1, entries=1024) as opened:
        yield opened


@pytest.fixture
def world(bed: Bed) -> World:
    world = World(bed, unfinished=True)
    world.forget()
    bed.settings()
    for n in SERVERS:
        world.server(n, f"10.0.1.{9 + n}:8080")
    world.service(1, "nat", SERVERS, SLOTS)
    world.listen(1, "10.0.0.100", TCP, 80)
    for n in range(100):  # so that the next hops to all servers are known, or nothing is plain
        world.send(tcp_frame(f"192.0.2.{n}:{n}", VIP, ACK))
    world.forget()
    return world


@pytest.mark.parametrize(("mode", "fate"), [("reject", Counter.SENT_RESET), ("drop", Counter.DROP_SERVICE)])
def test_a_service_that_takes_nobody_has_a_table_all_the_same(world: World, mode: str, fate: Counter) -> None:
    world.service(1, "nat", SERVERS, SLOTS, mode=mode)
    assert world.both(OPENS).counter is fate


def test_who_may_not_connect(world: World) -> None:
    world.service(1, "nat", SERVERS, SLOTS, allowed=("198.51.100.0/24",))
    assert world.both(OPENS).counter is Counter.DROP_DENIED


def test_what_no_router_forwards_opens_nothing(world: World) -> None:
    assert world.both(tcp_frame("127.0.0.1:1000", VIP, SYN)).verdict == PASS


def test_its_last_hop_was_here(world: World) -> None:
    assert world.both(tcp_frame(CLIENT, VIP, SYN, ttl=1)).counter is Counter.DROP_TTL


def test_a_checksum_that_was_left_to_the_hardware(world: World) -> None:
    e = ends(CLIENT, VIP)
    assert world.both(frame(packet(e, TCP, unfinished(e, TCP, tcp(e, SYN))))).verdict == REDIRECT


def test_ports_of_a_conversation_without_the_vip(world: World) -> None:
    """Its entry says so, whatever the packet: the address was no VIP when it began."""
    for flags in (SYN, ACK):
        world.both(tcp_frame(CLIENT, VIP, flags))
    rows = TABLES["flows4"].entries
    with world.bed.maps["flows4"].memory() as memory:
        (place,) = rows.used(memory, range(1024))
        entry = replace(abi.Flow4.unpack(rows.raw(memory, place)), kind=abi.Kind.DIRECT)
        memory[rows.offset(place) : rows.offset(place) + rows.layout.size] = entry.pack()
    assert world.send(OPENS).counter is Counter.PASS_DIRECT


def test_ports_of_an_earlier_connection(world: World) -> None:
    """One entry, which is new again; that the connection before is long over is counted."""
    world.service(1, "nat", SERVERS, SLOTS, timeout=abi.timeouts(1000, 1000, 10, 1000))
    expired = world.bed.counters()[Counter.EXPIRED]
    for flags in (SYN, ACK, FIN | ACK):
        world.both(tcp_frame(CLIENT, VIP, flags))
    (before,) = flows_of(world.bed.maps)
    world.send(OPENS)
    (after,) = flows_of(world.bed.maps)
    assert (before.entry.state, after.entry.state) == (abi.State.FIN, abi.State.NEW)
    assert replace(after.entry, state=before.entry.state, seen=0, lock=0) == replace(before.entry, seen=0, lock=0)
    service = abi.ServiceRecord.unpack(world.bed.maps["services"].get((1).to_bytes(4, "little")) or b"")
    assert (after.entry.table, after.entry.generation) == (service.table_base & 0xFFFF, 1)
    assert after.details.born == after.entry.seen
    assert world.bed.counters()[Counter.EXPIRED] == expired
    world.send(tcp_frame(CLIENT, VIP, FIN | ACK))
    (closing,) = flows_of(world.bed.maps)
    until(lambda: jiffies_since(world, closing.entry.seen) > 10, 2, "its connection is over")
    world.send(OPENS)
    assert world.bed.counters()[Counter.EXPIRED] == expired + 1


def jiffies_since(world: World, seen: int) -> int:
    """By the entry of another flow, whose time is now."""
    world.send(tcp_frame("192.0.2.2:2000", VIP, SYN))
    return max(it.entry.seen for it in flows_of(world.bed.maps)) - seen
