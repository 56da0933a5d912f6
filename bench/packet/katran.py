# SPDX-License-Identifier: Apache-2.0
"""Fills the maps of an outside Katran object (``--peer-obj``): one VIP, its ring, its real servers, one LRU.

Written from the public layout of its maps; nothing of it is part of this project. What does not fit is said by name.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from fairlead.dataplane.xdp.libbpf import BpfMap, LoadedObject, Program
from fairlead.errors import DataPlaneError

PROGRAM = "balancer_ingress"
RING = 65537
LAYOUT = {"vip_map": (20, 8), "ch_rings": (4, 4), "reals": (4, 20), "ctl_array": (4, 8), "lru_mapping": (4, 4)}


def load(path: Path, flows: int) -> LoadedObject:
    """Load the object with room for ``flows`` flows in one LRU."""
    loaded = LoadedObject(path, max_entries={"fallback_cache": max(65536, 2 * flows)})
    for name, sizes in LAYOUT.items():
        found = loaded.maps.get(name)
        if found is None or (found.key_size, found.value_size) != sizes:
            loaded.close()
            raise DataPlaneError(f"{path}: its map {name} is not laid out as expected; is it Katran's balancer object?")
    if PROGRAM not in loaded.programs:
        loaded.close()
        raise DataPlaneError(f"{path} has no program {PROGRAM}")
    return loaded


def fill(maps: dict[str, BpfMap], vip: IPv4Address, protocol: int, servers: Sequence[IPv4Address], cpu: int) -> None:
    """Offer port 80 of ``vip`` with ``servers``; the router is any link address."""
    maps["ctl_array"].put(_number(0), bytes.fromhex("020000000b0a0000"))
    key = vip.packed + bytes(12) + struct.pack(">HBx", 80, protocol)
    maps["vip_map"].put(key, struct.pack("<II", 0, 0))
    for number, server in enumerate(servers, start=1):
        maps["reals"].put(_number(number), server.packed + bytes(16))
    maps["ch_rings"].put_many({_number(slot): _number(1 + slot % len(servers)) for slot in range(RING)})
    maps["lru_mapping"].put(_number(cpu), maps["fallback_cache"].descriptor.to_bytes(4, "little"))


def program(loaded: LoadedObject) -> Program:
    """The program of the object."""
    return loaded.programs[PROGRAM]


def _number(value: int) -> bytes:
    return value.to_bytes(4, "little")
