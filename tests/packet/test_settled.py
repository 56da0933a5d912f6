# SPDX-License-Identifier: Apache-2.0
"""Flows that go by their slot because the flow table would say the same: that they do, and that no flow ever moves.

``touched`` has one word here, which all flows share.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp import abi, settle
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.records import u32
from fairlead.dataplane.xdp.settle import Settler
from packet.settled import (
    EPOCH,
    FLAGS,
    FOR_EVER,
    MARKS,
    SERVERS,
    SLOTS,
    VIP,
    begin,
    client,
    entries,
    put,
    send,
    seven,
    slot,
    word,
)
from packet.world import World
from support.oracle.nouns import PASS, REDIRECT, Reply
from support.packets import ACK, FIN, SYN, TCP, UDP, tcp_frame, udp_frame
from support.xdp import INSIDE, Bed, open_bed

pytestmark = pytest.mark.root

CROWDED = abi.Settings(crowded=1)


@pytest.fixture(scope="module")
def bed(namespace: None) -> Iterator[Bed]:
    # An epoch lasts for ever: what is a matter of time is written into the word.
    with open_bed(hop_ttl=1000, entries=1024, words=1, touch_shift=FOR_EVER) as opened:
        yield opened


@pytest.fixture
def world(bed: Bed) -> World:
    return seven(bed, CROWDED)


def without_table(world: World, number: int, flags: int = ACK) -> bool:
    """Whether its next packet is forwarded although its entry has gone. Leaves everything as it was."""
    held = word(world)
    with world.bed.maps["flows4"].memory() as memory:
        kept = memory[:]
        memory[:] = bytes(len(kept))
        before = world.bed.counters()
        run = world.bed.send(tcp_frame(client(number), VIP, flags))
        after = world.bed.counters()
        memory[:] = kept
    world.bed.maps["touched"].put(u32(0), held.to_bytes(8, "little"))
    world.resume()
    return run.verdict == REDIRECT and after == before


def test_of_a_settled_service_a_flow_that_was_met_needs_no_entry(world: World, settler: Settler) -> None:
    begin(world, 1, 2, 3)
    assert not without_table(world, 1), "nothing is settled"
    world.settle(settler)
    assert without_table(world, 1)
    assert send(world, 1) == SERVERS[SLOTS[slot(client(1))]]
    assert not without_table(world, 1, FIN | ACK), "a FIN changes the entry"


def test_a_flow_that_was_not_met_in_this_epoch_is_looked_up_once(world: World, settler: Settler) -> None:
    begin(world, 1, 2, 3)
    world.settle(settler)
    held = word(world)
    assert held & FLAGS
    other = (held >> EPOCH) + 1 & 255
    world.bed.maps["touched"].put(u32(0), (held & FLAGS | other << EPOCH).to_bytes(8, "little"))
    (at, entry), *_ = entries(world)
    put(world, at, replace(entry, seen=entry.seen - 5000))
    for number in (1, 2, 3):
        send(world, number)
    assert dict(entries(world))[at].seen > entry.seen - 5000
    assert word(world) == held
    assert without_table(world, 1)


def test_while_few_flows_are_in_use_they_are_looked_up(world: World, settler: Settler) -> None:
    """The table is in a cache itself then, and nothing is written beside it but marks."""
    world.bed.settings()
    begin(world, 1, 2, 3)
    world.settle(settler)
    assert word(world) & (FLAGS | MARKS) == 0
    assert not without_table(world, 1)
    world.bed.settings(CROWDED)
    assert not without_table(world, 1), "it was not met yet"
    send(world, 1)
    assert without_table(world, 1)
    world.bed.settings()
    assert not without_table(world, 1)


def test_the_agent_says_when_many_flows_are_in_use(
    world: World, settler: Settler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many as where they are few again. Between few and many two epochs pass, for flags to be of the past."""
    monkeypatch.setattr(settle, "_CROWDED", 8)
    monkeypatch.setattr(settle, "_SAMPLE", 1)
    world.bed.settings()
    held = Holdings(hertz=250, clock=lambda: 0.0)
    held.mirrors["settings"].use(world.bed.maps["settings"])

    def crowded(now: float) -> int:
        settler.step(held, now)
        held.flush()
        assert abi.Settings.unpack(world.bed.maps["settings"].get(u32(0)) or b"").crowded == held.settings.crowded
        return held.settings.crowded

    begin(world, *range(8))
    assert [crowded(now) for now in (100.0, 108.0, 115.9, 116.0)] == [0, 0, 0, 1]
    for at, _ in entries(world)[:4]:
        put(world, at, None)
    assert crowded(124.0) == 1
    (at, _), *_ = entries(world)
    put(world, at, None)
    assert [crowded(now) for now in (131.0, 132.0)] == [1, 0]
    begin(world, *range(8))
    assert [crowded(now) for now in (140.0, 148.0)] == [0, 1]


def test_a_part_of_the_table_stands_for_all_of_it(
    world: World, settler: Settler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "_CROWDED", 26)
    monkeypatch.setattr(settle, "_SAMPLE", 2)
    held = Holdings(hertz=250, clock=lambda: 0.0)
    begin(world, *range(40))
    for now in (100.0, 116.0):
        settler.step(held, now)
    assert held.settings.crowded


def test_strays_are_marked_also_while_few_flows_are_in_use(world: World) -> None:
    world.bed.settings()
    first = SERVERS[SLOTS[slot(client(1))]]
    world.server(first, f"10.0.1.{9 + first}:8080", source="10.0.1.1", reset=True)
    begin(world, 1)
    assert word(world) & MARKS == MARKS


def test_a_flow_that_shares_a_flag_is_looked_up(world: World, settler: Settler) -> None:
    begin(world, 1, 2, 3)
    world.settle(settler)
    world.bed.maps["touched"].put(u32(0), bytes(8))
    send(world, 1)
    own = word(world) & FLAGS
    others = FLAGS & ~own
    for flags, met in ((own | others, True), (own & own - 1 | others, False)):
        held = word(world) & ~FLAGS | flags
        world.bed.maps["touched"].put(u32(0), held.to_bytes(8, "little"))
        assert without_table(world, 1) is met


def test_udp_is_looked_up(world: World, settler: Settler) -> None:
    """A first packet of it does not say that it is one."""
    world.service(2, "dsr", SERVERS, tuple((n + 1) % 7 for n in SLOTS))
    world.listen(2, "10.0.0.100", UDP, 80)
    begin(world, 1, 2, 3)
    world.settle(settler)
    for _ in range(3):
        world.both(udp_frame(client(1), VIP, bytes(18)))
        assert word(world) & FLAGS
        held = word(world) | FLAGS
        world.bed.maps["touched"].put(u32(0), held.to_bytes(8, "little"))


def test_what_no_router_forwards_is_not_forwarded(world: World, settler: Settler) -> None:
    """Nor if others have met all its flags."""
    begin(world, 1, 2, 3)
    world.settle(settler)
    world.bed.maps["touched"].put(u32(0), (word(world) | FLAGS).to_bytes(8, "little"))
    assert world.bed.send(tcp_frame("192.0.2.200:1024", VIP, ACK)).verdict == REDIRECT
    world.resume()
    for port in range(1024, 1064):
        assert world.both(tcp_frame(f"127.0.0.1:{port}", VIP, ACK)).verdict == PASS


def test_a_flow_of_another_server_than_its_slots_marks_the_word(world: World, settler: Settler) -> None:
    begin(world, 1, 2, 3)
    home = send(world, 1)
    world.service(1, "nat", SERVERS, tuple((n + 1) % 7 for n in SLOTS))
    assert not without_table(world, 1), "a change unsettles"
    world.settle(settler)
    assert word(world) & MARKS
    assert not without_table(world, 2), "a word with a stray"
    assert send(world, 1) == home
    later = (word(world) >> EPOCH) + 1 & 255
    world.bed.maps["touched"].put(u32(0), (word(world) & (MARKS | FLAGS) | later << EPOCH).to_bytes(8, "little"))
    assert [send(world, number) for number in (2, 3, 1)][2] == home
    assert word(world) & MARKS, "for more than an epoch"
    for number in (1, 2, 3):
        send(world, number, SYN)
        begin(world, number)
    world.settle(settler)
    assert not word(world) & MARKS, "the strays have ended"
    assert without_table(world, 1)
    assert send(world, 1) == home % 7 + 1


def test_a_flow_that_was_refused_by_its_slots_server_marks_the_word(world: World, settler: Settler) -> None:
    """The table stays, and the server comes back: the flow has to stay where it went meanwhile."""
    begin(world, 1, 2, 3)
    world.settle(settler)
    number = next(n for n in range(10, 99) if SLOTS[slot(client(n))] == 0)
    world.server(1, "10.0.1.10:8080", reset=True, source="10.0.1.1")
    begin(world, number)
    elsewhere = send(world, number)
    assert elsewhere != 1
    world.server(1, "10.0.1.10:8080", source="10.0.1.1")
    assert word(world) & MARKS
    assert send(world, number) == elsewhere
    world.settle(settler)
    assert word(world) & MARKS
    assert send(world, number) == elsewhere


def test_a_mark_goes_with_the_next_round(world: World, settler: Settler) -> None:
    begin(world, 1, 2, 3)
    world.settle(settler)
    number = next(n for n in range(10, 99) if SLOTS[slot(client(n))] == 0)
    world.server(1, "10.0.1.10:8080", reset=True, source="10.0.1.1")
    begin(world, number)
    world.server(1, "10.0.1.10:8080", source="10.0.1.1")
    begin(world, number)
    assert word(world) & MARKS
    world.settle(settler)
    assert not word(world) & MARKS


def test_flows_of_a_service_that_was_there_before_mark_the_word(world: World, settler: Settler) -> None:
    """The same address, another service: its flows go on as they were forwarded."""
    begin(world, 1, 2, 3)
    world.service(2, "dsr", SERVERS, SLOTS)
    world.listen(2, "10.0.0.100", TCP, 80)
    world.settle(settler)
    assert word(world) & MARKS
    begin_dsr = world.both(tcp_frame(client(9), VIP, SYN)).frame
    assert begin_dsr[30:34] == bytes((10, 0, 0, 100))
    assert world.both(tcp_frame(client(1), VIP, ACK)).frame[30:34] != bytes((10, 0, 0, 100))
    world.listen(1, "10.0.0.100", TCP, 80)


def test_a_new_flow_is_looked_up_even_if_its_ports_were_met_before(world: World, settler: Settler) -> None:
    begin(world, 1, 2, 3)
    world.settle(settler)
    assert without_table(world, 1)
    send(world, 1, FIN | ACK)
    send(world, 1, SYN)
    assert not without_table(world, 1), "it is not open yet"
    send(world, 1)
    send(world, 1)
    assert without_table(world, 1)


def test_a_flow_that_its_answers_store_again_marks_the_word(world: World, settler: Settler) -> None:
    """Its servers' replies do not tell the VIP, so it is stored both ways, and one of the two was pushed out."""
    world.server(1, "10.0.1.10:8080", ambiguous=True)
    vip = ip_address("10.0.0.100")
    world.reply("10.0.1.10:8080", TCP, Reply(vip, 80, 1, 1, ambiguous=True))
    number = next(n for n in range(10, 99) if SLOTS[slot(client(n))] == 0)
    begin(world, 2, 3, number)
    world.service(1, "nat", SERVERS, tuple(max(1, n) for n in SLOTS))
    for at, entry in entries(world):
        if entry.kind == abi.Kind.TO_SERVER and entry.server == 1:
            put(world, at, None)
        elif entry.kind == abi.Kind.TO_CLIENT:
            put(world, at, replace(entry, seen=entry.seen - 1000))
    world.settle(settler)
    assert not word(world) & MARKS
    world.both(tcp_frame("10.0.1.10:8080", client(number), ACK), INSIDE)
    assert word(world) & MARKS
    assert send(world, number) == 1


def test_the_client_itself_is_passed_over(world: World, settler: Settler) -> None:
    """A nat server that is a client as well is never sent its own packets."""
    world.server(7, "192.0.0.1:8080", source="10.0.1.1")
    itself = next(at for n in range(2000) if SLOTS[slot(at := f"192.0.0.1:{3000 + n}")] == 6)
    begin(world, 2, 3, *(n for n in range(10, 40) if SLOTS[slot(client(n))] == 6))
    world.settle(settler)
    for flags in (SYN, ACK, ACK):
        world.both(tcp_frame(itself, VIP, flags))
    # As if no mark had been made and others had met all flags.
    world.bed.maps["touched"].put(u32(0), (word(world) & ~MARKS | FLAGS).to_bytes(8, "little"))
    assert world.both(tcp_frame(itself, VIP, ACK)).frame[30:34] != bytes((192, 0, 0, 1))


@pytest.mark.parametrize("forwarding", ["nat", "dsr", "tunnel"])
@pytest.mark.parametrize("seed", range(3))
def test_no_flow_ever_moves(bed: Bed, settler: Settler, forwarding: str, seed: int) -> None:
    """Connections come and go, tables change, servers are reset and return: the oracle knows of no settled service."""
    source, world = random.Random(seed), World(bed)
    world.forget()
    bed.settings(CROWDED)
    for n in SERVERS:
        world.server(n, f"10.0.1.{9 + n}:{8080 * (forwarding == 'nat')}", source="10.0.1.1")
    world.service(1, forwarding, SERVERS, SLOTS)
    world.listen(1, "10.0.0.100", TCP, 80)
    open_flows: list[int] = []
    slots, by_slot = list(SLOTS), 0
    for step in range(4000):
        kind = source.random()
        if kind < 0.05 or not open_flows:
            number = source.randrange(300)
            if number not in open_flows:
                begin(world, number)
                open_flows.append(number)
                del open_flows[:-8]
        elif kind < 0.06:
            send(world, source.choice(open_flows), FIN | ACK)
        elif kind < 0.063:
            slots = [source.choice(SLOTS) if source.random() < 0.1 else it for it in slots]
            world.service(1, forwarding, SERVERS, tuple(slots))
        elif kind < 0.1:
            number, reset = source.choice(SERVERS), source.random() < 0.3
            world.server(number, f"10.0.1.{9 + number}:{8080 * (forwarding == 'nat')}", reset=reset, source="10.0.1.1")
        elif kind < 0.25:
            world.settle(settler)
        elif step % 5 == 0:
            by_slot += without_table(world, open_flows[-1])
        else:
            world.both(tcp_frame(client(source.choice(open_flows)), VIP, ACK))
    assert by_slot > 4
