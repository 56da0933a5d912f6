# SPDX-License-Identifier: Apache-2.0
"""What happens to flows over time and under load: timeouts, a full table, floods, limits, two nodes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.abi import Counter
from fairlead.model.net import Endpoint, Protocol
from fairlead.policy.flowhash import flow_hash, flow_message, probes, slot_of, source_message
from packet.world import World
from support.oracle.nouns import DROP, PASS, REDIRECT, Reply
from support.packets import (
    ACK,
    FIN,
    RST,
    SYN,
    TCP,
    UDP,
    Ends,
    ends,
    frame,
    ipv4,
    packet,
    tcp,
    tcp_frame,
    udp,
    udp_frame,
)
from support.wait import until
from support.xdp import INSIDE, SEED, Bed, flows_of, ip, open_bed

pytestmark = pytest.mark.root

SERVERS = tuple(range(1, 8))
SLOTS = tuple(n % 7 for n in range(251))
VIP = "10.0.0.100:80"
SHORT = abi.timeouts(25, 100_000, 25, 25)  # 100 ms at 250 ticks a second


@pytest.fixture
def world(bed: Bed) -> World:
    world = World(bed)
    world.forget()
    bed.settings()
    for n in SERVERS:
        world.server(n, f"10.0.1.{9 + n}:8080", source="10.0.1.1")
    world.service(1, "nat", SERVERS, SLOTS)
    world.listen(1, "10.0.0.100", TCP, 80)
    world.listen(1, "10.0.0.100", UDP, 80)
    world.listen(1, "2001:db8::100", TCP, 80)
    return world


def server_of(out: bytes) -> int:
    """The last byte of the server's MAC."""
    return out[5]


def client(number: int) -> str:
    return f"192.0.{number >> 8}.{number & 255}:{1024 + number % 50000}"


def test_a_syn_again_stays_and_a_new_syn_is_chosen_anew(world: World) -> None:
    """By turns: only a SYN of a connection that got further, or after a change, may go to another server."""
    world.service(1, "nat", SERVERS, SLOTS, choice="turn")
    first = server_of(world.both(tcp_frame("192.0.2.1:1", VIP, SYN)).frame)
    assert server_of(world.both(tcp_frame("192.0.2.1:1", VIP, SYN)).frame) == first
    assert server_of(world.both(tcp_frame("192.0.2.1:1", VIP, ACK)).frame) == first
    assert server_of(world.both(tcp_frame("192.0.2.1:1", VIP, SYN)).frame) != first


def test_two_hundred_reconnects_from_one_port_leave_a_draining_server(world: World) -> None:
    """An established flow stays on the server that drains; each SYN from its port goes elsewhere at once."""
    out = world.both(tcp_frame("192.0.2.1:1", VIP, SYN)).frame
    world.both(tcp_frame("192.0.2.1:1", VIP, ACK))
    drained = server_of(out) - 9
    rest = tuple(n for n in SERVERS if n != drained)
    world.service(1, "nat", rest, tuple(n % len(rest) for n in range(251)))
    assert server_of(world.both(tcp_frame("192.0.2.1:1", VIP, ACK)).frame) == drained + 9
    for _ in range(200):
        assert server_of(world.both(tcp_frame("192.0.2.1:1", VIP, SYN)).frame) != drained + 9
        world.both(tcp_frame("192.0.2.1:1", VIP, ACK))


def test_turns_are_even(world: World) -> None:
    world.service(1, "nat", SERVERS, tuple(range(7)), choice="turn")
    chosen = [server_of(world.both(tcp_frame(client(n), VIP, SYN)).frame) for n in range(70)]
    assert {chosen.count(server) for server in set(chosen)} == {10}
    assert len(set(chosen)) == len(SERVERS)


def test_chance_reaches_all_and_is_remembered(world: World) -> None:
    world.service(1, "nat", SERVERS, SLOTS, choice="chance")
    chosen = {}
    for n in range(300):
        chosen[n] = server_of(world.send(tcp_frame(client(n), VIP, SYN)).frame)
    counts = [list(chosen.values()).count(server) for server in set(chosen.values())]
    assert len(counts) == 7
    assert min(counts) > 15
    assert all(server_of(world.send(tcp_frame(client(n), VIP, ACK)).frame) == server for n, server in chosen.items())


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("by_source", [False, True])
def test_the_choice_is_that_of_the_policy(world: World, version: int, by_source: bool) -> None:
    """The same server as policy.flowhash says, for every flow; also the tries after a server that is reset."""
    six = version == 6
    if six:
        for n in SERVERS:
            world.server(n, f"[2001:db8:1::{0xF + n:x}]:8080")
    world.service(1, "nat", SERVERS, SLOTS, choice="source" if by_source else "flow")
    gone = world.oracle.servers[3]
    world.server(3, f"[{gone.address}]:8080", reset=True)
    vip = Endpoint(ip_address("2001:db8::100" if six else "10.0.0.100"), 80)
    for n in range(200):
        source = Endpoint(ip_address(f"2001:db8:c::{n:x}" if six else f"192.0.2.{n + 1}"), 2000 + n)
        message = source_message(source.address) if by_source else flow_message(Protocol.TCP, source, vip)
        tries = probes(flow_hash(SEED, message), len(SLOTS))
        wanted = next(server for slot in tries if (server := SERVERS[SLOTS[slot]]) != 3)
        e = Ends(source.address, source.port, vip.address, vip.port)
        out = world.both(frame(packet(e, TCP, tcp(e)))).frame
        assert server_of(out) == wanted + (15 if six else 9)
    assert slot_of(0xFFFFFFFF_00000000, 251) == 250


def states(bed: Bed) -> list[abi.State]:
    return [abi.State(it.entry.state) for it in flows_of(bed.maps)]


def test_states_follow_the_packets(world: World) -> None:
    for flags, state in (
        (SYN, abi.State.NEW),
        (SYN, abi.State.NEW),
        (ACK, abi.State.OPEN),
        (FIN | ACK, abi.State.FIN),
        (ACK, abi.State.FIN),
        (RST, abi.State.RST),
        (ACK, abi.State.OPEN),
    ):
        world.send(tcp_frame("192.0.2.1:1", VIP, flags))
        assert states(world.bed) == [state]


@pytest.mark.parametrize("flags", [(SYN,), (SYN, ACK, FIN), (SYN, ACK, RST)], ids=["syn", "fin", "rst"])
def test_short_lives(world: World, flags: tuple[int, ...]) -> None:
    """Half open, half closed and reset flows are forgotten after their own timeouts; open ones are not."""
    world.service(1, "nat", SERVERS, SLOTS, timeout=SHORT)
    world.send(tcp_frame("192.0.2.9:1", VIP, SYN))
    world.send(tcp_frame("192.0.2.9:1", VIP, ACK))
    for flag in flags:
        world.send(tcp_frame("192.0.2.1:1", VIP, flag))
    expired = world.bed.counters()[Counter.EXPIRED]
    time.sleep(0.15)  # the timeout itself: 25 ticks
    world.send(tcp_frame("192.0.2.9:1", VIP, ACK))
    assert world.bed.counters()[Counter.EXPIRED] == expired
    world.send(tcp_frame("192.0.2.1:1", VIP, ACK))
    assert world.bed.counters()[Counter.EXPIRED] == expired + 1


def test_a_flow_in_use_does_not_expire(world: World) -> None:
    world.service(1, "nat", SERVERS, SLOTS, timeout=abi.timeouts(100, 100, 100, 100))
    before = world.bed.counters()[Counter.EXPIRED]
    end = time.monotonic() + 0.9
    while time.monotonic() < end:
        world.send(tcp_frame("192.0.2.1:1", VIP, ACK))
        time.sleep(0.02)
    assert world.bed.counters()[Counter.EXPIRED] == before


def test_a_reset_server(world: World) -> None:
    """TCP is answered with an RST that the client believes; UDP goes to another server with the next datagram."""
    world.service(2, "nat", SERVERS, SLOTS)
    world.listen(2, "10.0.0.100", UDP, 81)
    first = server_of(world.both(tcp_frame("192.0.2.1:1", VIP, ACK)).frame) - 9
    world.server(first, f"10.0.1.{9 + first}:8080", reset=True, source="10.0.1.1")
    assert world.both(tcp_frame("192.0.2.1:1", VIP, ACK)).counter is Counter.SENT_RESET
    assert world.both(tcp_frame("192.0.2.1:1", VIP, SYN)).verdict == REDIRECT
    one = server_of(world.both(udp_frame("192.0.2.1:1", "10.0.0.100:81")).frame) - 9
    world.server(one, f"10.0.1.{9 + one}:8080", reset=True, source="10.0.1.1")
    assert server_of(world.both(udp_frame("192.0.2.1:1", "10.0.0.100:81")).frame) - 9 != one


def test_two_nodes_one_answer(world: World) -> None:
    """A node that never saw a flow forwards it to the same server, and turns its replies back."""
    world.reply("10.0.1.10:8080", TCP, Reply(ip_address("10.0.0.100"), 80, 1, 1))
    first = {n: world.both(tcp_frame(client(n), VIP, SYN)).frame for n in range(200)}
    world.forget()
    for n, out in first.items():
        assert server_of(world.both(tcp_frame(client(n), VIP, ACK)).frame) == server_of(out)
    world.forget()
    reply = world.both(tcp_frame("10.0.1.10:8080", client(1), ACK), INSIDE)
    assert reply.verdict == REDIRECT
    assert reply.frame[26:30] == ip_address("10.0.0.100").packed


def test_the_rate_of_a_source(world: World) -> None:
    """Ten at once, then no more within the second; others are not concerned, nor is the open connection."""
    world.service(1, "nat", SERVERS, SLOTS, new_per_source=10)
    began = time.monotonic()
    fates = [world.send(tcp_frame(f"192.0.2.1:{2000 + n}", VIP, SYN)).counter for n in range(25)]
    back = math.ceil((time.monotonic() - began) * 10)  # one in each tenth of a second
    assert fates[:10] == [None] * 10
    assert fates.count(Counter.DROP_SOURCE_RATE) >= 15 - back > 0
    assert world.send(tcp_frame("192.0.2.2:2000", VIP, SYN)).counter is None
    assert world.send(tcp_frame("192.0.2.1:2000", VIP, ACK)).counter is None
    until(lambda: world.send(tcp_frame("192.0.2.1:3000", VIP, SYN)).counter is None, 2, "a new connection is allowed")


def test_the_brake(world: World) -> None:
    """Beyond the limit new flows are forwarded by the hash and not stored; stored ones go on."""
    world.both(tcp_frame("192.0.2.1:1", VIP, ACK))
    world.bed.settings(abi.Settings(brake=20))
    before = world.bed.counters()
    outs = [world.send(tcp_frame(client(n), VIP, SYN)) for n in range(500)]
    after = world.bed.counters()
    assert all(out.verdict == REDIRECT for out in outs)
    stateless = after[Counter.NEW_STATELESS] - before[Counter.NEW_STATELESS]
    assert stateless > 100
    assert after[Counter.NEW_FLOW] - before[Counter.NEW_FLOW] == 500 - stateless
    again = [world.send(tcp_frame(client(n), VIP, ACK)).frame for n in range(500)]
    assert [server_of(out) for out in again] == [server_of(out.frame) for out in outs]


def lost(world: World, ports: range) -> tuple[int, int]:
    """New flows that fullnat dropped because they were not stored, and how many of those the table had no place for."""
    before = world.bed.counters()
    for port in ports:
        world.bed.send(tcp_frame(f"198.51.100.2:{port}", VIP, SYN))
    after = world.bed.counters()
    dropped, full = (after[c] - before[c] for c in (Counter.DROP_NOT_STORED, Counter.STORE_FAILED))
    return dropped, full


def test_fullnat_drops_what_the_brake_stops_and_it_was_not_the_table(world: World) -> None:
    """Without an entry replies could not be turned back; stored flows go on. `store_failed` tells the two apart."""
    world.snat("10.0.1.1")
    world.service(1, "fullnat", SERVERS, SLOTS)
    first = server_of(world.bed.send(tcp_frame(client(1), VIP, SYN)).packet)
    world.bed.settings(dataclasses.replace(world.settings, brake=20), snat=("10.0.1.1",))
    dropped, full = lost(world, range(1, 501))
    assert dropped > 100
    assert full == 0
    again = world.bed.send(tcp_frame(client(1), VIP, ACK))
    assert (again.verdict, server_of(again.packet)) == (REDIRECT, first)


def test_f28_the_brake_keeps_no_connection_with_the_server_of_the_one_before(world: World) -> None:
    """A port that is used again gets a new server; what it said to the old one must not send the rest there."""
    first = [server_of(world.both(tcp_frame(client(n), VIP, SYN)).frame) for n in range(60)]
    for n in range(60):
        world.both(tcp_frame(client(n), VIP, ACK))
    drained = first[0] - 9
    rest = tuple(n for n in SERVERS if n != drained)
    world.service(1, "nat", rest, tuple(n % len(rest) for n in range(251)))
    world.bed.settings(abi.Settings(brake=1))
    for n in range(60):
        chosen = server_of(world.both(tcp_frame(client(n), VIP, SYN)).frame)
        assert chosen != drained + 9
        assert server_of(world.both(tcp_frame(client(n), VIP, ACK)).frame) == chosen


def test_answers_are_limited(world: World) -> None:
    world.service(1, "nat", (), (), mode="reject")
    world.bed.settings(abi.Settings(answers=5))
    fates = [world.send(tcp_frame(client(n), VIP, SYN)).counter for n in range(100)]
    assert fates.count(Counter.SENT_RESET) >= 5
    assert fates.count(Counter.DROP_ANSWER_LIMIT) > 10


def test_ports_of_fullnat_run_out(world: World) -> None:
    """Twenty ports carry twenty flows to one server, each with its own; the next is dropped and counted."""
    world.snat("10.0.1.1", ports=(5000, 5019))
    world.service(1, "fullnat", (1,), (0,))
    ports = {world.both(tcp_frame(client(n), VIP, SYN)).frame[34:36] for n in range(20)}
    assert len(ports) == 20
    assert world.both(tcp_frame(client(20), VIP, SYN)).counter is Counter.DROP_SNAT_FULL
    world.service(1, "fullnat", (2,), (0,))  # another server: the same ports again
    assert world.both(tcp_frame(client(21), VIP, SYN)).verdict == REDIRECT


def test_every_cpu_has_its_own_ports(world: World) -> None:
    world.bed.settings(abi.Settings(cpus=4, snat_first=5000, snat_last=5399), snat=("10.0.1.1",))
    world.service(1, "fullnat", (1,), (0,))
    ports = {int.from_bytes(world.send(tcp_frame(client(n), VIP, SYN)).frame[34:36], "big") for n in range(100)}
    assert ports == set(range(5000 + 100 * world.bed.cpu, 5100 + 100 * world.bed.cpu))


def test_source_spread_of_a_tunnel(world: World) -> None:
    world.server(1, "10.0.1.10:0", source="172.16.0.0", spread=0xFFFF)
    world.service(1, "tunnel", (1,), (0,))
    sources = {world.both(tcp_frame(client(n), VIP, ACK)).frame[26:30] for n in range(500)}
    assert len(sources) > 480
    assert {source[:2] for source in sources} == {bytes((172, 16))}
    assert len({world.both(tcp_frame(client(1), VIP, ACK)).frame[26:30] for _ in range(5)}) == 1


@pytest.fixture(scope="module")
def small(namespace: None) -> Iterator[Bed]:
    """A flow table of 1024 entries."""
    with open_bed(entries=1024, hop_ttl=1000) as bed:
        yield bed


@pytest.fixture
def narrow(small: Bed) -> World:
    world = World(small)
    world.forget()
    for n in SERVERS:
        world.server(n, f"10.0.1.{9 + n}:8080")
    world.service(1, "nat", SERVERS, SLOTS)
    world.listen(1, "10.0.0.100", TCP, 80)
    return world


def test_a_table_that_is_too_small_misroutes_nothing(narrow: World) -> None:
    """Five thousand flows in a table of a thousand: every packet of every flow reaches the same server."""
    first = {n: server_of(narrow.send(tcp_frame(client(n), VIP, SYN)).frame) for n in range(5000)}
    for _ in range(2):
        assert all(server_of(narrow.send(tcp_frame(client(n), VIP, ACK)).frame) == s for n, s in first.items())


def test_a_flood_of_syns_pushes_out_no_established_flow(narrow: World) -> None:
    """500 flows that stand, chosen by turns so that only the table knows their servers, and 20 000 SYNs."""
    narrow.service(1, "nat", SERVERS, SLOTS, choice="turn")
    standing = {}
    for n in range(500):
        out = narrow.send(tcp_frame(client(n), VIP, SYN)).frame
        if server_of(narrow.send(tcp_frame(client(n), VIP, ACK)).frame) == server_of(out):
            standing[n] = server_of(out)
    assert len(standing) > 490
    for n in range(20_000):
        narrow.bed.send(tcp_frame(f"198.51.{n >> 8}.{n & 255}:7", VIP, SYN))
    assert all(server_of(narrow.send(tcp_frame(client(n), VIP, ACK)).frame) == s for n, s in standing.items())


def test_a_new_flow_takes_the_place_of_one_that_is_only_new(narrow: World) -> None:
    """After a flood of SYNs has filled the table, a connection that means it is stored all the same."""
    for n in range(5000):
        narrow.bed.send(tcp_frame(f"198.51.{n >> 8}.{n & 255}:7", VIP, SYN))
    before = narrow.bed.counters()
    for n in range(100):
        narrow.bed.send(tcp_frame(client(n), VIP, SYN))
    after = narrow.bed.counters()
    assert after[Counter.NEW_FLOW] - before[Counter.NEW_FLOW] == 100
    assert after[Counter.STORE_FAILED] == before[Counter.STORE_FAILED]


def test_fullnat_drops_what_a_full_table_has_no_place_for_and_counts_both(narrow: World) -> None:
    """Where it is the table, each drop has its `store_failed`."""
    for n in range(3000):
        narrow.bed.send(tcp_frame(client(n), VIP, SYN))
        narrow.bed.send(tcp_frame(client(n), VIP, ACK))
    narrow.snat("10.0.1.1")
    narrow.service(1, "fullnat", SERVERS, SLOTS)
    ports = narrow.bed.counters()[Counter.DROP_SNAT_FULL]
    dropped, full = lost(narrow, range(1, 201))
    assert dropped == full > 0
    assert narrow.bed.counters()[Counter.DROP_SNAT_FULL] == ports, "ports were free"


def test_a_full_table_of_established_flows_takes_no_more(narrow: World) -> None:
    """What finds no place is forwarded all the same, and counted."""
    for n in range(3000):
        narrow.bed.send(tcp_frame(client(n), VIP, SYN))
        narrow.bed.send(tcp_frame(client(n), VIP, ACK))
    before = narrow.bed.counters()[Counter.STORE_FAILED]
    assert narrow.send(tcp_frame("198.51.100.1:7", VIP, SYN)).verdict == REDIRECT
    for n in range(50):
        narrow.bed.send(tcp_frame(f"198.51.100.2:{n}", VIP, SYN))
    assert narrow.bed.counters()[Counter.STORE_FAILED] > before


def test_a_server_id_that_is_used_again_inherits_no_flow(world: World) -> None:
    """The same id with another generation: the flow is chosen anew, here by turns to the next server."""
    world.service(1, "nat", (1, 2), (0, 1), choice="turn")
    for _ in range(3):
        world.bed.send(tcp_frame("192.0.2.1:1", VIP, ACK))
    first = server_of(world.bed.send(tcp_frame("192.0.2.1:1", VIP, ACK)).packet)
    world.bed.server(first - 9, f"10.0.1.{first}:8080", generation=2)
    assert server_of(world.bed.send(tcp_frame("192.0.2.1:1", VIP, ACK)).packet) != first


def test_fragments_are_forgotten(namespace: None) -> None:
    """A later fragment long after its first one is an orphan: the identification has been used again since."""
    with open_bed(fragment_ttl=50) as bed:
        world = World(bed)
        world.server(1, "10.0.1.10:8080")
        world.service(1, "nat", (1,), (0,))
        world.listen(1, "10.0.0.100", UDP, 80)
        e = ends("192.0.2.1:1", VIP)
        datagram = udp(e, bytes(40))
        first = frame(ipv4(e.source, e.destination, UDP, datagram[:24], identity=7, fragment=0x2000))
        later = frame(ipv4(e.source, e.destination, UDP, datagram[24:], identity=7, fragment=3))
        world.send(first)
        assert world.send(later).verdict == REDIRECT
        time.sleep(0.3)  # 50 ticks are 200 ms
        assert world.send(later).counter is Counter.DROP_ORPHAN


def test_a_next_hop_is_believed_for_a_short_time_only(namespace: None) -> None:
    """A neighbour's new link address is used after at most ``hop_ttl``."""

    def resolve(mac: str) -> None:
        ip("neigh", "replace", "10.0.1.19", "lladdr", mac, "dev", INSIDE.name, "nud", "permanent")

    with open_bed(hop_ttl=5) as bed:
        world = World(bed)
        world.server(1, "10.0.1.19:8080")
        world.service(1, "nat", (1,), (0,))
        world.listen(1, "10.0.0.100", TCP, 80)
        before = world.send(tcp_frame("192.0.2.1:1", VIP)).frame[:6]
        try:
            resolve("02:00:00:00:00:99")
            time.sleep(0.05)  # 5 ticks are 20 ms
            assert world.send(tcp_frame("192.0.2.1:1", VIP)).frame[:6].hex() == "020000000099"
        finally:
            resolve(before.hex(":"))


@pytest.mark.parametrize("ambiguous", [False, True])
def test_a_kernel_that_does_not_forward(namespace: None, ambiguous: bool) -> None:
    """Requests are dropped; what a server sends is left to the stack, for it may be the answer of a health check."""
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    with open_bed(hop_ttl=0) as bed:
        world = World(bed)
        world.server(1, "10.0.1.10:8080", ambiguous=ambiguous)
        world.service(1, "nat", (1,), (0,))
        world.listen(1, "10.0.0.100", TCP, 80)
        world.reply("10.0.1.10:8080", TCP, Reply(ip_address("10.0.0.100"), 80, 1, 1, ambiguous=ambiguous))
        switch.write_text("0")
        try:
            request = world.send(tcp_frame("192.0.2.1:1", VIP))
            answer = tcp_frame("10.0.1.10:8080", "10.0.1.1:40000", ACK)
            probe = world.send(answer, INSIDE)
        finally:
            switch.write_text("1")
    assert (request.verdict, request.counter) == (DROP, Counter.DROP_FORWARDING_OFF)
    assert (probe.verdict, probe.frame, probe.counter) == (PASS, answer, Counter.PASS_OWN)


def test_only_the_flows_of_a_dead_server_move(world: World) -> None:
    """With the slots of the others unchanged, and they come back when it does."""
    before = {n: server_of(world.send(tcp_frame(client(n), VIP, SYN)).frame) for n in range(500)}
    world.service(1, "nat", SERVERS, tuple(s if s != 2 else (i % 2) for i, s in enumerate(SLOTS)))
    without = {n: server_of(world.send(tcp_frame(client(n), VIP, SYN)).frame) for n in range(500)}
    moved = {n for n in before if before[n] != without[n]}
    assert moved == {n for n in before if before[n] == 9 + 3}
    world.service(1, "nat", SERVERS, SLOTS)
    assert {n: server_of(world.send(tcp_frame(client(n), VIP, SYN)).frame) for n in range(500)} == before


def test_no_server_left(world: World) -> None:
    world.service(1, "nat", (), ())
    outcome = world.both(tcp_frame("192.0.2.1:1", VIP, SYN))
    assert (outcome.verdict, outcome.counter) == (DROP, Counter.DROP_NO_SERVER)


def test_traffic_is_counted(world: World) -> None:
    """Per service and server, in both directions, in octets of the IP packet."""
    world.service(1, "nat", (1,), (0,))
    world.reply("10.0.1.10:8080", TCP, Reply(ip_address("10.0.0.100"), 80, 1, 1))
    names = ("service_traffic", "server_traffic")

    def read() -> list[abi.Traffic]:
        return [abi.sum_traffic(world.bed.maps[name].get((1).to_bytes(4, "little")) or b"") for name in names]

    before = read()
    for flags in (SYN, ACK, ACK):
        world.both(tcp_frame("192.0.2.1:1", VIP, flags, bytes(10)))
    world.both(tcp_frame("10.0.1.10:8080", "192.0.2.1:1", ACK, bytes(60)), INSIDE)
    for old, new in zip(before, read(), strict=True):
        grown = {k: v - getattr(old, k) for k, v in dataclasses.asdict(new).items()}
        assert grown == {"connections": 1, "packets_in": 3, "bytes_in": 150, "packets_out": 1, "bytes_out": 100}


@pytest.mark.parametrize("fast", [0, 1])
def test_single_flows_are_counted_on_demand(namespace: None, fast: int) -> None:
    with open_bed(accounting=1, fast_path=fast, hop_ttl=1000) as bed:
        world = World(bed)
        world.server(1, "10.0.1.10:8080")
        world.server(2, "[2001:db8:1::10]:8080")
        for service, vip in ((1, "10.0.0.100"), (2, "2001:db8::100")):
            world.service(service, "nat", (service,), (0,))
            world.listen(service, vip, TCP, 80)
        for flags in (SYN, ACK, ACK, ACK):
            world.send(tcp_frame("192.0.2.1:1", VIP, flags, bytes(10)))
            world.send(tcp_frame("[2001:db8:c::1]:1", "[2001:db8::100]:80", flags, bytes(10)))
        counts = [(it.details.packets, it.details.octets) for it in flows_of(bed.maps)]
        assert counts == [(4, 4 * 50), (4, 4 * 70)]


def test_ambiguous_flows_keep_both_directions_alive(world: World) -> None:
    """A server behind two VIPs: replies find the right one, also long after the last reply."""
    world.server(7, "10.0.1.16:8080", ambiguous=True)
    for service, vip in ((1, "10.0.0.100"), (2, "10.0.0.101")):
        world.service(service, "nat", (7,), (0,), timeout=abi.timeouts(150, 150, 150, 150))
        world.listen(service, vip, TCP, 80)
        world.reply("10.0.1.16:8080", TCP, Reply(ip_address(vip), 80, service, 7, ambiguous=True))
    ambiguous = ends("10.0.1.16:8080", "192.0.2.1:1")
    reply = frame(packet(ambiguous, TCP, tcp(ambiguous)))
    world.send(tcp_frame("192.0.2.1:1", "10.0.0.101:80", SYN))
    end = time.monotonic() + 1.2
    while time.monotonic() < end:
        world.send(tcp_frame("192.0.2.1:1", "10.0.0.101:80", ACK))
        time.sleep(0.05)
    out = world.send(reply, INSIDE)
    assert out.frame[26:30] == ip_address("10.0.0.101").packed
