# SPDX-License-Identifier: Apache-2.0
"""Where entries stand in the flow table: near those of their client's other flows, and elsewhere when that is full."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.flows import TABLES, FlowTable, flow_key
from fairlead.model.net import Endpoint
from packet.world import World
from support.oracle.nouns import REDIRECT, Reply
from support.packets import ACK, RST, SYN, TCP, tcp_frame
from support.wait import until
from support.xdp import INSIDE, Bed, flows_of, open_bed

VIPS = {4: "10.0.0.100:80", 6: "[2001:db8::100]:80"}
NEIGHBOURS = 32  # flows of one client whose ports differ in their low bits alone
ENTRIES = 16384
SECRET = bytes(range(16))


@pytest.fixture(scope="module")
def bed(namespace: None) -> Iterator[Bed]:
    with open_bed(entries=ENTRIES, hop_ttl=1000) as opened:
        yield opened


@pytest.fixture
def world(bed: Bed) -> World:
    world = World(bed)
    world.forget()
    bed.settings(abi.Settings(secret=SECRET))
    world.server(1, "10.0.1.10:8080")
    world.server(2, "[2001:db8:1::10]:8080")
    for service, version in ((1, 4), (2, 6)):
        world.service(service, "nat", (service,), (0,))
        world.listen(service, VIPS[version].rpartition(":")[0].strip("[]"), TCP, 80)
    return world


def client(version: int, number: int, port: int) -> Endpoint:
    return Endpoint(
        ip_address(f"192.0.{number >> 8}.{number & 255}" if version == 4 else f"2001:db8:c::{number:x}"), port
    )


def establish(world: World, *clients: Endpoint) -> None:
    for it in clients:
        for flags in (SYN, ACK):
            world.send(tcp_frame(str(it), VIPS[it.address.version], flags))


def place_of(table: FlowTable, it: Endpoint) -> int | None:
    """As the agent finds it."""
    version = it.address.version
    vip = Endpoint(ip_address(VIPS[version].rpartition(":")[0].strip("[]")), 80)
    found = table.find(flow_key(it, vip, TCP), SECRET)
    return found[0] if found is not None else None


@pytest.mark.parametrize("version", [4, 6])
def test_flows_of_one_client_that_begin_after_one_another_share_a_region(world: World, version: int) -> None:
    regions: list[set[int]] = []
    table = FlowTable(world.bed.maps)
    per_region = TABLES[f"flows{version}"].places << TABLES[f"flows{version}"].region_bits
    for number in range(1, 5):
        flows = [client(version, number, 40960 + n) for n in range(NEIGHBOURS)]
        establish(world, *flows)
        places = [place_of(table, it) for it in flows]
        assert None not in places
        regions.append({place // per_region for place in places if place is not None})
    table.close()
    # What begins at the end of a region may go on in the next.
    assert [len(it) <= 2 for it in regions] == [True] * 4
    assert len(set.union(*regions)) >= 3


@pytest.mark.parametrize("version", [4, 6])
def test_a_table_half_full_of_neighbours_has_a_place_for_each(world: World, version: int) -> None:
    """What is established is pushed out by nobody, so each has to have found a place that was free.

    From its home on alone, one in eight would have none.
    """
    clients = ENTRIES // 2 // NEIGHBOURS
    flows = [client(version, number, 1024 + n) for number in range(1, clients + 1) for n in range(NEIGHBOURS)]
    establish(world, *flows)
    stored = len(flows_of(world.bed.maps))
    assert len(flows) * 0.997 < stored <= len(flows)
    table = FlowTable(world.bed.maps)
    places = [place for it in flows if (place := place_of(table, it)) is not None]
    table.close()
    assert len(places) == len(set(places)) == stored


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_that_stands_elsewhere_is_replaced_where_it_stands(world: World, version: int) -> None:
    """Its ports again: one entry, also when there is room at home by then."""
    flows = [client(version, number, 1024 + n) for number in range(1, 255) for n in range(NEIGHBOURS)]
    establish(world, *flows)
    table = FlowTable(world.bed.maps)
    before = {it: place_of(table, it) for it in flows}
    establish(world, *flows)
    keys = Tally((it.entry.src, it.entry.sport) for it in flows_of(world.bed.maps))
    assert set(keys.values()) == {1}
    assert {it: place_of(table, it) for it in flows} == before
    table.close()


def is_plain(world: World, frame: bytes) -> bool:
    """Whether it is forwarded by the fast path, which leaves alone what the general one works on."""
    scratch = world.bed.maps["scratch"]
    zero = (0).to_bytes(4, "little")
    scratch.put(zero, bytes(len(scratch.get(zero) or b"")))
    assert world.send(frame, INSIDE).verdict == REDIRECT
    return not any(scratch.get(zero) or b"")


@pytest.mark.parametrize("version", [4, 6])
def test_replies_are_plain_again_some_time_after_a_client_came_without_the_vip(world: World, version: int) -> None:
    service, server, vip, at = (
        (1, 1, "10.0.0.100", "10.0.1.10:8080") if version == 4 else (2, 2, "2001:db8::100", "[2001:db8:1::10]:8080")
    )
    world.service(service, "nat", (server,), (0,), timeout=abi.timeouts(50, 50, 50, 50))
    world.reply(at, TCP, Reply(ip_address(vip), 80, service, server))
    reply = tcp_frame(at, str(client(version, 1, 40960)), ACK)
    world.send(reply, INSIDE)
    assert is_plain(world, reply)
    world.send(tcp_frame(str(client(version, 9, 1)), at, RST))
    assert is_plain(world, reply), "an RST to a server is no conversation"
    world.send(tcp_frame(str(client(version, 9, 1)), at, SYN))
    assert not is_plain(world, reply)
    until(lambda: is_plain(world, reply), 5, "it is long ago")
