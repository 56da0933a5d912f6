# SPDX-License-Identifier: Apache-2.0
"""What ``worker/abi.h`` says, for tests: numbers, layouts and the shared memory.

The layout of structs comes from the worker itself (``--abi``), so that nothing of the header is repeated here.
"""

from __future__ import annotations

import ipaddress
import json
import mmap
import os
import struct
import subprocess
from enum import IntEnum
from pathlib import Path
from typing import Any

Value = int | bytes


class Kind(IntEnum):
    """``enum fl_type``."""

    HELLO = 1
    ATTACH = 2
    HANDOVER = 3
    DRAIN = 4
    QUIT = 5
    SERVER_PUT = 16
    SERVER_DEL = 17
    TABLE_PUT = 18
    TABLE_DEL = 19
    SERVICE_PUT = 20
    SERVICE_DEL = 21
    LISTEN_PUT = 22
    LISTEN_DEL = 23
    DUMP = 32
    FLOWS = 33
    FLOW = 34
    DONE = 64


class Scheduler(IntEnum):
    """``enum fl_scheduler``."""

    MAGLEV = 0
    RR = 1
    WRR = 2
    LC = 3
    WLC = 4
    SH = 5
    RANDOM = 6


class Mode(IntEnum):
    """``enum fl_mode``."""

    FORWARD = 0
    REJECT = 1
    DROP = 2


class State(IntEnum):
    """``enum fl_flow_state``."""

    CONNECTING = 0
    ESTABLISHED = 1
    CLIENT_CLOSED = 2
    SERVER_CLOSED = 3


class Layouts:
    """Structs as the worker's compiler laid them out."""

    def __init__(self, program: Path) -> None:
        described = json.loads(subprocess.run([program, "--abi"], check=True, capture_output=True).stdout)
        self.constants: dict[str, int] = described["constants"]
        self._structs: dict[str, dict[str, Any]] = described["structs"]

    def size(self, name: str) -> int:
        return int(self._structs[f"fl_{name}"]["size"])

    def names(self) -> list[str]:
        return list(self._structs)

    def members(self, name: str) -> dict[str, tuple[int, int]]:
        """Offset and size of each member of a struct (named as in the header), in order."""
        return {member: (at, size) for member, (at, size) in self._structs[name]["fields"].items()}

    def place(self, name: str, member: str) -> tuple[int, int]:
        """Offset and size of a member; of a whole array when it is one."""
        offset, size = self._structs[f"fl_{name}"]["fields"][member]
        return int(offset), int(size)

    def pack(self, name: str, /, **values: Value) -> bytes:
        data = bytearray(self.size(name))
        for member, value in values.items():
            offset, size = self.place(name, member)
            raw = value.to_bytes(size, "little") if isinstance(value, int) else value.ljust(size, b"\0")
            assert len(raw) == size, (name, member, value)
            data[offset : offset + size] = raw
        return bytes(data)

    def unpack(self, name: str, data: bytes | mmap.mmap, offset: int = 0) -> dict[str, Any]:
        """Members as integers where they have the size of one, else as bytes."""
        found: dict[str, Any] = {}
        for member, (at, size) in self._structs[f"fl_{name}"]["fields"].items():
            raw = bytes(data[offset + at : offset + at + size])
            found[member] = int.from_bytes(raw, "little") if size in (1, 2, 4, 8) else raw
        return found


class Memory:
    """The shared memory as the agent makes it."""

    def __init__(self, layouts: Layouts) -> None:
        self._layouts = layouts
        size = layouts.size("shm")
        self.fd = os.memfd_create("fairlead-test")
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        constants = layouts.constants
        for member, value in {
            "magic": constants["FL_SHM_MAGIC"],
            "abi": constants["FL_ABI_VERSION"],
            "size": size,
        }.items():
            at, width = layouts.place("shm", member)
            self.map[at : at + width] = value.to_bytes(width, "little")

    def at(self, array_of: str, item: str, index: int, *, within: str = "shm", base: int = 0) -> int:
        """Where one item of an array stands."""
        return base + self._layouts.place(within, array_of)[0] + index * self._layouts.size(item)

    def item(self, array_of: str, item: str, index: int) -> dict[str, Any]:
        return self._layouts.unpack(item, self.map, self.at(array_of, item, index))

    def put(self, position: int, item: str, **values: Value) -> None:
        for member, value in values.items():
            offset, size = self._layouts.place(item, member)
            raw = value.to_bytes(size, "little") if isinstance(value, int) else value
            self.map[position + offset : position + offset + len(raw)] = raw

    def row_at(self, slot: int) -> int:
        return self.at("worker", "worker_row", slot)

    def row(self, slot: int = 0) -> dict[str, int]:
        base = self.row_at(slot)
        found = {}
        for member in ("pid", "accepting", "active", "descriptors_used", "descriptors_limit", "accept_pauses", "loops"):
            offset, size = self._layouts.place("worker_row", member)
            found[member] = int.from_bytes(self.map[base + offset : base + offset + size], "little")
        return found

    def service(self, number: int = 1, slot: int = 0) -> dict[str, Any]:
        base = self.at("service", "service_row", number, within="worker_row", base=self.row_at(slot))
        row = self._layouts.unpack("service_row", self.map, base)
        row["rejected"] = struct.unpack("=32Q", row["rejected"])
        return row

    def server(self, number: int = 1, slot: int = 0) -> dict[str, Any]:
        base = self.at("server", "server_row", number, within="worker_row", base=self.row_at(slot))
        return self._layouts.unpack("server_row", self.map, base)

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


def address(host: str, port: int) -> bytes:
    """Struct fl_address."""
    ip = ipaddress.ip_address(host)
    packed = ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed
    return packed + struct.pack("=HBB", port, ip.version, 0)


def endpoint(raw: bytes) -> tuple[str, int]:
    """The reverse of ``address``."""
    ip = ipaddress.IPv6Address(raw[:16])
    return str(ip.ipv4_mapped or ip), int.from_bytes(raw[16:18], "little")
