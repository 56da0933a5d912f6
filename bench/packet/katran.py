# SPDX-License-Identifier: Apache-2.0
"""Sets up an outside Katran object (``--peer-obj``) as Katran's own control plane would, and checks what it does.

Written from the public layout of its maps; nothing of it is part of this project. What does not fit is said by name.

Katran stops storing flows after 125 000 new ones in a second and says so to nobody. `calm` and `flood` set the
counter by which it decides, so that a row meets the one or the other on purpose.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from bench.packet.harness import ETHERNET, Traffic
from fairlead.dataplane.xdp.libbpf.binding import possible_cpus
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject, map_definitions
from fairlead.errors import DataPlaneError
from support.packets import Address, checksum

PROGRAM = "balancer_ingress"
HASH, ARRAY, PERCPU_ARRAY, LRU_HASH, ARRAY_OF_MAPS = 1, 2, 6, 9, 12  # enum bpf_map_type
# Type, sizes of key and value, flags. A service's counters stand in `stats` under its number, those of all behind.
LAYOUT = {
    "vip_map": (HASH, 20, 8, 0),
    "ch_rings": (ARRAY, 4, 4, 0),
    "reals": (ARRAY, 4, 20, 0),
    "ctl_array": (ARRAY, 4, 8, 0),
    "lru_mapping": (ARRAY_OF_MAPS, 4, 4, 0),
    "fallback_cache": (LRU_HASH, 40, 16, 0),
    "stats": (PERCPU_ARRAY, 4, 16, 0),
}
LOOKUPS, NEW_FLOWS, FALLBACKS = 0, 2, 3  # of the counters of all
ROUTER = bytes.fromhex("020000000b0a")
TTL = 64
IPV6_REAL = 1
ENDLESS = 1 << 40
IPIP, IPV6 = 4, 41  # protocol numbers
IPV6_VERSION = 6


class Katran:
    """One loaded object, without services.

    Args:
        path: The object file.
        entries: Size of the connection table. Katran gives each forwarding CPU one of its own, which the object only
            knows as an inner map; the map it falls back to is of the same type, flags and layout and serves as that.
        cpu: The CPU that forwards.

    Raises:
        DataPlaneError: The object is not Katran's, or not laid out as expected.
    """

    def __init__(self, path: Path, entries: int, cpu: int) -> None:
        check_layout(path)
        self.cpu = cpu
        self._loaded = LoadedObject(path, max_entries={"fallback_cache": entries})
        if PROGRAM not in self._loaded.programs:
            self.close()
            raise DataPlaneError(f"{path} has no program {PROGRAM}; is it Katran's balancer object?")
        self._maps = self._loaded.maps
        self.program = self._loaded.programs[PROGRAM]
        self._flows = self._maps["fallback_cache"]
        self._services = self._maps["vip_map"].max_entries
        self._maps["lru_mapping"].put(_number(cpu), self._flows.descriptor.to_bytes(4, "little"))
        self._maps["ctl_array"].put(_number(0), ROUTER + bytes(2))

    def serve(self, vip: Address, protocol: int, servers: Sequence[Address], others: int = 0) -> None:
        """Offer port 80 of ``vip`` with ``servers``, and of ``others`` more addresses from 100.64.0.0 on."""
        ring = self._maps["ch_rings"].max_entries // self._services
        base = IPv4Address("100.64.0.0")
        for number, address in enumerate([vip, *(base + other for other in range(others))]):
            key = address.packed.ljust(16, b"\0") + struct.pack(">HBx", 80, protocol)
            self._maps["vip_map"].put(key, struct.pack("<II", 0, number))
        for number, server in enumerate(servers, start=1):
            flags = IPV6_REAL if server.version == 6 else 0
            self._maps["reals"].put(_number(number), server.packed.ljust(16, b"\0") + struct.pack("<Bxxx", flags))
        self._maps["ch_rings"].put_many({_number(slot): _number(1 + slot % len(servers)) for slot in range(ring)})

    def calm(self) -> None:
        """Let it store the next new flows."""
        self._set(NEW_FLOWS, 0, time.monotonic_ns())

    def flood(self) -> None:
        """Let it believe that this second has seen too many new flows."""
        self._set(NEW_FLOWS, ENDLESS, time.monotonic_ns())

    def _set(self, counter: int, first: int, second: int) -> None:
        value = struct.pack("<QQ", first, second)
        self._maps["stats"].put(_number(self._services + counter), value * possible_cpus())

    def counters(self) -> tuple[int, int, int]:
        """Packets for a service so far, how many of them belonged to no known flow, and how often it fell back."""
        packets, unknown = self._counter(LOOKUPS)
        return packets, unknown, self._counter(FALLBACKS)[0]

    def _counter(self, which: int) -> tuple[int, int]:
        row = self._maps["stats"].get(_number(self._services + which))
        assert row is not None
        first, second = struct.unpack_from("<QQ", row, 16 * self.cpu)
        return first, second

    def server_of(self, packet: bytes) -> int | None:
        """Which server, counted from 0, the connection table has for the flow of an IP packet."""
        found = self._flows.get(flow_key(packet))
        return None if found is None else int.from_bytes(found[:4], "little") - 1

    def close(self) -> None:
        """Unload."""
        self._loaded.close()


def check_layout(path: Path) -> None:
    """See that an object file has the maps that are filled here.

    Raises:
        DataPlaneError: It has not, or is no object file.
    """
    if not path.is_file():
        raise DataPlaneError(f"{path}: there is no such file")
    found = map_definitions(path)
    for name, layout in LAYOUT.items():
        if name not in found:
            raise DataPlaneError(f"{path} has no map {name}; is it Katran's balancer object?")
        if found[name][0] != layout:
            raise DataPlaneError(
                f"{path}: its map {name} has type, key, value and flags {found[name][0]}, not {layout}; "
                "bench/packet/katran.py knows another version of Katran"
            )


def flow_key(packet: bytes) -> bytes:
    """What Katran knows the flow of an IP packet (no options, TCP or UDP) by."""
    if packet[0] >> 4 == 4:
        ends, ports, protocol = [packet[12:16], packet[16:20]], packet[20:24], packet[9]
    else:
        ends, ports, protocol = [packet[8:24], packet[24:40]], packet[40:44], packet[6]
    return b"".join(end.ljust(16, b"\0") for end in ends) + ports + bytes((protocol, 0, 0, 0))


def delivered(frame: bytes, traffic: Traffic, servers: Sequence[Address]) -> tuple[bytes, int]:
    """The packet that a frame tunnels to one of ``servers``, and to which of them, counted from 0.

    Raises:
        AssertionError: The frame is anything else than a packet of ``traffic`` on its way to one of them.
    """
    assert frame[:6] == ROUTER, f"sent to {frame[:6].hex(':')}, not to the router"
    assert frame[6:12] == traffic.frame[:6], f"sent from {frame[6:12].hex(':')}, not from this node"
    kind, outer = frame[12:14], frame[ETHERNET:]
    inside = IPIP if traffic.frame[12:14] == b"\x08\x00" else IPV6
    size = 20 if servers[0].version == 4 else 40
    header, inner = outer[:size], outer[size:]
    if servers[0].version == 4:
        length = struct.pack(">H", 20 + len(traffic.frame) - ETHERNET)
        whole = kind == b"\x08\x00" and not checksum(header) and header[2:4] == length
        place, lifetime, following = header[16:20], header[8], header[9]
    else:
        length = struct.pack(">H", len(traffic.frame) - ETHERNET)
        whole = kind == b"\x86\xdd" and header[0] >> 4 == IPV6_VERSION and header[4:6] == length
        place, lifetime, following = header[24:40], header[7], header[6]
    assert whole, f"not a tunnelled packet: {frame[12:].hex()}"
    assert (lifetime, following) == (TTL, inside), f"TTL and protocol are {(lifetime, following)}"
    assert ip_address(place) in servers, f"sent to {ip_address(place)}, which is no server"
    assert traffic.holds(inner), f"the packet in the tunnel was changed: {inner.hex()}"
    return inner, servers.index(ip_address(place))


def _number(value: int) -> bytes:
    return value.to_bytes(4, "little")
