# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the XDP program's maps as Python values: the other side of ``bpf/abi.h``.

Invariants: every layout here equals the compiled one (a test compares offsets and sizes); addresses are packed as
16 bytes with IPv4 as ::ffff:a.b.c.d; ports are plain numbers here and network order in the kernel.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from fairlead.dataplane.xdp.layout import Layout, Record
from fairlead.model.net import IPAddress

ABI = 3
HOPS = 1024
NEAR_BITS = 18
PROBES = 8
PLACES4, REGION4_BITS, REGION6_BITS, NEIGHBOURS = 2, 5, 6, 0x1F00
BLOCKS_PER_WORD, MARK_BITS = 4, 54
SETTLED = 1 << 31
TRIES = 16
NEAR_VIP, NEAR_SERVER = 1, 2
SNAT_MAX = 32
SLOT_UNIT = 8
WINDOW_SHIFT = 4
CARRIED = 256
SERVER_RESET, SERVER_AMBIGUOUS, SERVER_UNPIN = 1, 2, 4
REPLY_AMBIGUOUS, REPLY_GUESS = 1, 2
WAY_MARK, WAY_MARKS = 0x464C0000, 0xFFFF0000
ANY_PORT_BITS, RANGE_BITS, ACCESS_LIST_BITS = 144, 160, 32
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_BITS = 0xFFFF << 32
NOWHERE = bytes(16)


class Forwarding(IntEnum):
    """``enum fl_forwarding``."""

    NAT = 1
    FULLNAT = 2
    DSR = 3
    TUNNEL = 4


class Choice(IntEnum):
    """``enum fl_choice``: how a new flow gets its slot."""

    BY_FLOW = 0
    BY_SOURCE = 1
    BY_TURN = 2
    BY_CHANCE = 3


class Mode(IntEnum):
    """``enum fl_mode``."""

    FORWARD = 0
    REJECT = 1
    DROP = 2


class Kind(IntEnum):
    """``enum fl_kind``: what an entry of the flow table stands for."""

    FREE = 0
    TO_SERVER = 1
    TO_CLIENT = 2
    DIRECT = 3
    GONE = 4


class State(IntEnum):
    """``enum fl_state``: which timeout a flow has."""

    NEW = 0
    OPEN = 1
    FIN = 2
    RST = 3


class Counter(IntEnum):
    """``enum fl_counter``: why a packet was not forwarded, or what else happened."""

    PASS_UNRELATED = 0
    PASS_NO_SERVICE = 1
    PASS_MALFORMED = 2
    PASS_OWN = 3
    PASS_DIRECT = 4
    PASS_ICMP = 5
    PASS_UNRESOLVED = 6
    PASS_RESOLVING = 7
    DROP_DENIED = 8
    DROP_SOURCE_RATE = 9
    DROP_SERVICE = 10
    DROP_NO_SERVER = 11
    DROP_HAIRPIN = 12
    DROP_TTL = 13
    DROP_NO_ROUTE = 14
    DROP_FORWARDING_OFF = 15
    DROP_OFF_LINK = 16
    DROP_TOO_BIG = 17
    DROP_ORPHAN = 18
    DROP_SNAT_FULL = 19
    DROP_NOT_STORED = 20
    DROP_REPLY_UNKNOWN = 21
    DROP_SERVER_RESET = 22
    DROP_UNANSWERABLE = 23
    DROP_ANSWER_LIMIT = 24
    DROP_FAMILY = 25
    DROP_FAULT = 26
    DROP_MERGED = 27
    DROP_CHECKSUM = 28
    SENT_ECHO = 29
    SENT_RESET = 30
    SENT_UNREACHABLE = 31
    SENT_TOO_BIG = 32
    SENT_PATH_MTU = 33
    NEW_FLOW = 34
    NEW_STATELESS = 35
    STORE_FAILED = 36
    EXPIRED = 37
    FRAGMENT_FIRST = 38
    FRAGMENT_LATER = 39
    ICMP_FORWARDED = 40


def packed(address: IPAddress) -> bytes:
    """An address as the maps hold it: 16 bytes."""
    number = int(address)  # quicker than to ask for its bytes
    return (number | _MAPPED_BITS if isinstance(address, IPv4Address) else number).to_bytes(16, "big")


def unpacked(raw: bytes) -> IPAddress:
    """The address that ``packed`` made ``raw`` of."""
    return IPv4Address(raw[12:]) if is_v4(raw) else IPv6Address(raw)


def is_v4(address: bytes) -> bool:
    """Whether a packed address is one of IPv4."""
    return address.startswith(_MAPPED)


def near_index(address: bytes) -> int:
    """The byte of the address filter (map ``near``) that stands for a packed address."""
    if is_v4(address):
        folded = int.from_bytes(address[12:], "little")
    else:
        a, b, c, d = struct.unpack("<4I", address)
        folded = (a ^ b * 3 ^ c * 5 ^ d * 7) & 0xFFFFFFFF
    return (folded * _GOLDEN & (1 << 64) - 1) >> 64 - NEAR_BITS


_FLOW = (
    "port sport, port dport, u8 proto, u8 kind, u8 state, zero:1, u32 seen, u32 server,"
    "u16 service, u16 generation, u16 table, u16 lock"
)


@dataclass(frozen=True, slots=True)
class Flow4(Record):
    """One entry of ``flows4``; addresses are 4 bytes, times jiffies."""

    LAYOUT: ClassVar = Layout("fl_flow4", f"v4 src, v4 dst, {_FLOW}")
    src: bytes
    dst: bytes
    sport: int
    dport: int
    proto: int
    kind: int
    state: int
    seen: int
    server: int
    service: int
    generation: int
    table: int
    lock: int


@dataclass(frozen=True, slots=True)
class Flow6(Flow4):
    """One entry of ``flows6``; addresses are 16 bytes."""

    LAYOUT: ClassVar = Layout("fl_flow6", f"addr src, addr dst, {_FLOW}, zero:8")


@dataclass(frozen=True, slots=True)
class Details4(Record):
    """What stands beside an entry of ``flows4``."""

    LAYOUT: ClassVar = Layout(
        "fl_details4", "u64 octets, u32 packets, u32 born, v4 near, v4 far, port near_port, port far_port, zero:4"
    )
    octets: int
    packets: int
    born: int
    near: bytes
    far: bytes
    near_port: int
    far_port: int


@dataclass(frozen=True, slots=True)
class Details6(Details4):
    """What stands beside an entry of ``flows6``."""

    LAYOUT: ClassVar = Layout(
        "fl_details6", "u64 octets, u32 packets, u32 born, addr near, addr far, port near_port, port far_port, zero:12"
    )


@dataclass(frozen=True, slots=True)
class Carried(Record):
    """One flow for the program ``carry``; addresses are 16 bytes in both families."""

    LAYOUT: ClassVar = Layout(
        "fl_carried",
        "addr src, addr dst, addr near, addr far, u64 octets, u32 packets, u32 seen, u32 born, u32 server,"
        "port sport, port dport, port near_port, port far_port, u16 service, u16 generation, u16 table,"
        "u8 proto, u8 family, u8 kind, u8 state, u8 stored, zero:5",
    )
    src: bytes
    dst: bytes
    near: bytes
    far: bytes
    octets: int
    packets: int
    seen: int
    born: int
    server: int
    sport: int
    dport: int
    near_port: int
    far_port: int
    service: int
    generation: int
    table: int
    proto: int
    family: int
    kind: int
    state: int
    stored: int = 0


@dataclass(frozen=True, slots=True)
class ListenKey4(Record):
    """Key of ``listeners4`` and ``replies4``."""

    LAYOUT: ClassVar = Layout("fl_listen4", "v4 addr, port port, u8 proto, zero:1")
    addr: bytes
    port: int
    proto: int


@dataclass(frozen=True, slots=True)
class ListenKey6(Record):
    """Key of ``listeners6`` and ``replies6``."""

    LAYOUT: ClassVar = Layout("fl_listen6", "addr addr, port port, u8 proto, zero:1")
    addr: bytes
    port: int
    proto: int


@dataclass(frozen=True, slots=True)
class RangeKey(Record):
    """Key of ``ranges``: the first ``prefix_bits`` bits of what follows count."""

    LAYOUT: ClassVar = Layout("fl_range", "u32 prefix_bits, addr addr, u8 proto, zero:1, port port")
    prefix_bits: int
    addr: bytes
    proto: int
    port: int


@dataclass(frozen=True, slots=True)
class AccessKey(Record):
    """Key of ``access``; ``list`` is 4 bytes in network order."""

    LAYOUT: ClassVar = Layout("fl_access", "u32 prefix_bits, be32 list, addr addr")
    prefix_bits: int
    list: bytes
    addr: bytes


@dataclass(frozen=True, slots=True)
class ServiceRecord(Record):
    """Value of ``services``; timeouts in jiffies."""

    LAYOUT: ClassVar = Layout(
        "fl_service",
        "u32 table_base, u32 table_size, u8 forwarding, u8 choice, u8 mode, zero:1, u32 access, addr seed,"
        "addr timeout, u32 new_per_source, zero:12",
    )
    table_base: int
    table_size: int  # and SETTLED
    forwarding: int
    choice: int
    mode: int
    access: int
    seed: bytes
    timeout: bytes
    new_per_source: int = 0

    @property
    def slots(self) -> int:
        """How many its table has."""
        return self.table_size & ~SETTLED

    @property
    def is_settled(self) -> bool:
        """Whether packets of flows that were met a moment ago go by their slot, without a look at the flow table."""
        return bool(self.table_size & SETTLED)


def settled(record: bytes, *, on: bool) -> bytes:
    """A packed ServiceRecord with that said of it."""
    (size,) = struct.unpack_from("<I", record, 4)
    return record[:4] + struct.pack("<I", size | SETTLED if on else size & ~SETTLED) + record[8:]


def timeouts(syn: int, idle: int, fin: int, rst: int) -> bytes:
    """The ``timeout`` member of a service, in jiffies by State."""
    return struct.pack("<4I", syn, idle, fin, rst)


@dataclass(frozen=True, slots=True)
class ServerRecord(Record):
    """Value of ``servers``; ``spread`` is 4 bytes in network order."""

    LAYOUT: ClassVar = Layout(
        "fl_server",
        "addr addr, port port, u16 generation, u8 family, u8 flags, zero:2, addr source, be32 spread, zero:20",
    )
    addr: bytes
    port: int
    generation: int
    family: int
    flags: int = 0
    source: bytes = NOWHERE
    spread: bytes = bytes(4)


@dataclass(frozen=True, slots=True)
class WayRecord(Record):
    """Value of ``ways``: the server, of which port, generation and flags are not used, and what else a probe needs."""

    LAYOUT: ClassVar = Layout(
        "fl_way",
        "addr addr, zero:4, u8 server_family, zero:3, addr source, be32 spread, zero:20, addr vip, addr near,"
        "port port, u8 family, u8 proto, u8 forwarding, zero:3, u64 packets",
    )
    addr: bytes
    server_family: int
    source: bytes
    spread: bytes
    vip: bytes
    near: bytes
    port: int
    family: int
    proto: int
    forwarding: int
    packets: int = 0


@dataclass(frozen=True, slots=True)
class AskedKey(Record):
    """Key of ``asked``: the ends of a probe, as the VIP knows them."""

    LAYOUT: ClassVar = Layout("fl_asked", "addr near, addr vip, port near_port, port port, u8 proto, zero:3")
    near: bytes
    vip: bytes
    near_port: int
    port: int
    proto: int


@dataclass(frozen=True, slots=True)
class AskerRecord(Record):
    """Value of ``asked``: the probe's own address, and its mark."""

    LAYOUT: ClassVar = Layout("fl_asker", "addr own, u32 mark")
    own: bytes
    mark: int


@dataclass(frozen=True, slots=True)
class ReplyRecord(Record):
    """Value of ``replies4`` and ``replies6``."""

    LAYOUT: ClassVar = Layout("fl_reply", "addr vip, port port, u16 flags, u32 service, u32 server, u32 direct")
    vip: bytes
    port: int
    flags: int
    service: int
    server: int
    direct: int = 0


@dataclass(frozen=True, slots=True)
class SourceKey(Record):
    """Key of ``sources``."""

    LAYOUT: ClassVar = Layout("fl_source", "u32 service, addr addr")
    service: int
    addr: bytes


@dataclass(frozen=True, slots=True)
class Settings(Record):
    """The one value of ``settings``; ``snat`` holds up to SNAT_MAX packed addresses, IPv4 first."""

    LAYOUT: ClassVar = Layout(
        "fl_settings",
        "u32 abi, u32 wide, u32 brake, u32 answers, u32 cpus, u16 snat_first, u16 snat_last, u32 snat4, u32 snat6,"
        "u32 crowded, zero:4, addr secret",
    )
    abi: int = ABI
    wide: int = 0
    brake: int = 0
    answers: int = 0
    cpus: int = 1
    snat_first: int = 1024
    snat_last: int = 32767
    snat4: int = 0
    snat6: int = 0
    crowded: int = 0
    secret: bytes = bytes(16)

    def with_snat(self, addresses: tuple[IPAddress, ...]) -> bytes:
        """The whole value, sending from these addresses."""
        ordered = sorted(addresses, key=lambda address: address.version)
        four = sum(address.version == 4 for address in ordered)
        record = dataclasses.replace(self, snat4=four, snat6=len(ordered) - four)
        return (record.pack() + b"".join(map(packed, ordered))).ljust(self.LAYOUT.size + 16 * SNAT_MAX, b"\0")


@dataclass(frozen=True, slots=True)
class Traffic(Record):
    """One CPU's value of ``service_traffic`` or ``server_traffic``."""

    LAYOUT: ClassVar = Layout(
        "fl_traffic", "u64 connections, u64 packets_in, u64 bytes_in, u64 packets_out, u64 bytes_out"
    )
    connections: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0


CPU_BYTES = 8 * len(Counter) + 24  # struct fl_cpu


def sum_traffic(raw: bytes) -> Traffic:
    """All CPUs' values of one element together."""
    size = Traffic.LAYOUT.size
    rows = [Traffic.unpack(raw[start : start + size]) for start in range(0, len(raw), size)]
    return Traffic(*(sum(getattr(row, name) for row in rows) for name, _ in Traffic.LAYOUT.members))


def sum_counters(raw: bytes) -> dict[Counter, int]:
    """The counters of all CPUs together, from the one element of ``cpus``."""
    totals = [0] * len(Counter)
    for start in range(0, len(raw), CPU_BYTES):
        for index, value in enumerate(struct.unpack_from(f"<{len(Counter)}Q", raw, start)):
            totals[index] += value
    return {counter: totals[counter] for counter in Counter}


def table_block(members: list[int], slots: bytes) -> bytes:
    """A slot table as it stands in ``slots``: 16-bit member numbers, then the members' server ids, in whole units.

    Args:
        members: Server ids.
        slots: Member numbers, 16 bits each, little endian.
    """
    numbers = slots.ljust((len(slots) + SLOT_UNIT - 1) // SLOT_UNIT * SLOT_UNIT, b"\0")
    ids = struct.pack(f"<{len(members)}I", *members)
    return numbers + ids.ljust((len(ids) + SLOT_UNIT - 1) // SLOT_UNIT * SLOT_UNIT, b"\0")
