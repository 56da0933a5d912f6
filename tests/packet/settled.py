# SPDX-License-Identifier: Apache-2.0
"""A nat service with seven servers, and a look at its flows' entries and at the one word beside them."""

from __future__ import annotations

from ipaddress import ip_address

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.flows import TABLES
from fairlead.dataplane.xdp.records import u32
from fairlead.model.net import Endpoint, Protocol
from fairlead.policy.flowhash import flow_hash, flow_message, slot_of
from packet.world import World
from support.packets import ACK, SYN, TCP, tcp_frame
from support.xdp import SEED, Bed

SERVERS = tuple(range(1, 8))
SIZE = 251
ROWS = TABLES["flows4"].entries
SLOTS = tuple(n % 7 for n in range(SIZE))
VIP = "10.0.0.100:80"
MARKS = 3 << abi.MARK_BITS
FLAGS = (1 << abi.MARK_BITS) - 1
EPOCH = 56
FOR_EVER = 31  # touch_shift: an epoch of this length never ends


def seven(bed: Bed, settings: abi.Settings) -> World:
    """The service, and no flow."""
    world = World(bed)
    world.forget()
    bed.settings(settings)
    for n in SERVERS:
        world.server(n, f"10.0.1.{9 + n}:8080", source="10.0.1.1")
    world.service(1, "nat", SERVERS, SLOTS)
    world.listen(1, "10.0.0.100", TCP, 80)
    return world


def client(number: int) -> str:
    return f"192.0.{number >> 8}.{number & 255}:{1024 + number}"


def slot(source: str) -> int:
    """Which slot a client's flow has."""
    at, vip = (Endpoint(ip_address(host), int(port)) for host, _, port in (source.rpartition(":"), VIP.rpartition(":")))
    return slot_of(flow_hash(SEED, flow_message(Protocol.TCP, at, vip)), SIZE)


def send(world: World, number: int, flags: int = ACK) -> int:
    """The server it went to, which is the oracle's."""
    return world.both(tcp_frame(client(number), VIP, flags)).frame[5] - 9


def begin(world: World, *numbers: int) -> None:
    """Establish flows, and meet each of them."""
    for number in numbers:
        for flags in (SYN, ACK, ACK):
            send(world, number, flags)


def entries(world: World) -> list[tuple[int, abi.Flow4]]:
    """Where entries stand in the flow table, and what they say."""
    with world.bed.maps["flows4"].memory() as memory:
        used = ROWS.used(memory, range(len(memory) // ROWS.block * ROWS.places))
        return [(ROWS.offset(place), abi.Flow4.unpack(ROWS.raw(memory, place))) for place in used]


def put(world: World, at: int, entry: abi.Flow4 | None) -> None:
    """Write an entry, or none."""
    size = abi.Flow4.LAYOUT.size
    with world.bed.maps["flows4"].memory() as memory:
        memory[at : at + size] = entry.pack() if entry is not None else bytes(size)


def word(world: World) -> int:
    return int.from_bytes(world.bed.maps["touched"].get(u32(0)) or b"", "little")
