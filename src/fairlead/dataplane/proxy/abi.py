# SPDX-License-Identifier: Apache-2.0
"""The Python half of ``worker/abi.h``: its numbers, and the place of every field.

Invariant: nothing in here knows the model; ``codec`` translates. A test compares every layout with what the
compiler made of the header (``fairlead-worker --abi``).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from mmap import mmap
from typing import Any

ABI_VERSION = 5
NAME_MAX = 64
KEY_MAX = 192
MAX_WORKERS = 32
MAX_SERVERS = 131072
MAX_SERVICES = 16384
MAX_TABLES = 16384
MAX_MEMBERS = 16384
MAX_RANGES = 4096
REASONS = 32
SOURCES = 65536
SHM_MAGIC = 0x464C5348

SERVER_RESET = 1
SERVER_UNPIN = 2
SERVICE_ACL = 1
SERVICE_ACCEPT_PROXY = 2
SERVICE_TRANSPARENT = 4

MAX_PACKET = 512 * 1024  # more than the largest message: a service with MAX_RANGES, a table with MAX_MEMBERS


Readable = bytes | bytearray | memoryview | mmap


class Type(IntEnum):
    """What a control message is."""

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


class FlowState(IntEnum):
    """Where a flow is in its life."""

    CONNECTING = 0
    ESTABLISHED = 1
    CLIENT_CLOSED = 2
    SERVER_CLOSED = 3


class Layout:
    """One C struct: its fields in order with their ``struct`` codes; every padding is a named field.

    Attributes:
        fields: Offset and size in bytes of each field.
        size: Size in bytes of the struct.
    """

    def __init__(self, name: str, /, **codes: str) -> None:
        self.name = name
        self._struct = struct.Struct("=" + "".join(codes.values()))
        self.size = self._struct.size
        self.fields: dict[str, tuple[int, int]] = {}
        at = 0
        for field, code in codes.items():
            size = struct.calcsize("=" + code)
            self.fields[field] = (at, size)
            at += size

    def pack(self, *values: object) -> bytes:
        """The struct as bytes."""
        return self._struct.pack(*values)

    def unpack(self, data: Readable, offset: int = 0) -> tuple[Any, ...]:
        """The struct's values out of ``data``.

        Raises:
            struct.error: ``data`` is too short.
        """
        return self._struct.unpack_from(data, offset)

    def offset(self, field: str) -> int:
        """Where ``field`` begins."""
        return self.fields[field][0]


_HEADER = "HHI"
_ADDRESS = "16sHBB"

HEADER = Layout("fl_header", type="H", reserved="H", seq="I")
DONE = Layout("fl_done", header=_HEADER, error="i", cursor="I", message="120s")
ADDRESS = Layout("fl_address", ip="16s", port="H", family="B", reserved="B")
HELLO = Layout(
    "fl_hello",
    header=_HEADER,
    abi="I",
    pid="I",
    slot="I",
    attached="I",
    draining="I",
    flows="I",
    build="32s",
)
ATTACH = Layout("fl_attach", header=_HEADER, slot="I", reserved="I")
DRAIN = Layout("fl_drain", header=_HEADER, deadline_ms="I", reserved="I")
ID = Layout("fl_id", header=_HEADER, id="I", reserved="I")
SERVER = Layout(
    "fl_server",
    header=_HEADER,
    id="I",
    weight="I",
    max_connections="I",
    flags="I",
    address=_ADDRESS,
    key="192s",
)
TABLE = Layout(
    "fl_table",
    header=_HEADER,
    id="I",
    size="I",
    members="I",
    reserved="I",
    digest="16s",
    content="Q",
)
RANGE = Layout("fl_range", low="16s", high="16s")
SERVICE = Layout(
    "fl_service",
    header=_HEADER,
    id="I",
    table="I",
    scheduler="B",
    mode="B",
    protocol="B",
    forwarding="B",
    flags="I",
    idle_ms="I",
    connect_ms="I",
    half_close_ms="I",
    retries="I",
    persist_ms="I",
    persist_v4="B",
    persist_v6="B",
    send_proxy="B",
    reserved="B",
    max_connections="I",
    connections_per_source="I",
    new_per_source="I",
    ranges="I",
    queue="I",
    queue_ms="I",
    source_v4="B",
    source_v6="B",
    reserved2="H",
    reserved3="I",
    seed="16s",
    name="64s",
    pool="64s",
)
LISTEN = Layout("fl_listen", header=_HEADER, service="I", protocol="I", address=_ADDRESS, reserved="I")
FLOWS = Layout("fl_flows", header=_HEADER, cursor="I", limit="I", service="I", server="I")
FLOW = Layout(
    "fl_flow",
    header=_HEADER,
    service="I",
    server="I",
    client=_ADDRESS,
    vip=_ADDRESS,
    state="I",
    age_ms="I",
    idle_ms="I",
    reserved="I",
    bytes_in="Q",
    bytes_out="Q",
)

SERVER_ROW = Layout(
    "fl_server_row",
    connections="Q",
    connect_failures="Q",
    bytes_in="Q",
    bytes_out="Q",
    active="I",
    consecutive_failures="I",
    reserved="3Q",
)
SERVICE_ROW = Layout(
    "fl_service_row",
    connections="Q",
    bytes_in="Q",
    bytes_out="Q",
    active="I",
    queued="I",
    rejected=f"{REASONS}Q",
)
WORKER_ROW = Layout(
    "fl_worker_row",
    pid="I",
    accepting="I",
    active="I",
    descriptors_used="I",
    descriptors_limit="I",
    reserved="I",
    accept_pauses="Q",
    loops="Q",
    reserved2="2Q",
    service=f"{MAX_SERVICES * SERVICE_ROW.size}x",
    server=f"{MAX_SERVERS * SERVER_ROW.size}x",
)
SHARED_SERVER = Layout("fl_shared_server", active="I")
SHARED_SERVICE = Layout("fl_shared_service", active="I", cursor="I", queued="I", reserved="I")
SOURCE = Layout(
    "fl_source",
    lock="I",
    service="I",
    ip="16s",
    refilled_ms="Q",
    tokens_milli="I",
    reserved="I",
    held=f"{MAX_WORKERS}I",
)
STICKY = Layout("fl_sticky", lock="I", service="I", ip="16s", expires_ms="Q", server="I", reserved="I")
SHM = Layout(
    "fl_shm",
    magic="I",
    abi="I",
    size="Q",
    reserved="6Q",
    service=f"{MAX_SERVICES * SHARED_SERVICE.size}x",
    server=f"{MAX_SERVERS * SHARED_SERVER.size}x",
    source=f"{SOURCES * SOURCE.size}x",
    sticky=f"{SOURCES * STICKY.size}x",
    worker=f"{MAX_WORKERS * WORKER_ROW.size}x",
)

LAYOUTS = (
    HEADER,
    DONE,
    ADDRESS,
    HELLO,
    ATTACH,
    DRAIN,
    ID,
    SERVER,
    TABLE,
    RANGE,
    SERVICE,
    LISTEN,
    FLOWS,
    FLOW,
    SERVER_ROW,
    SERVICE_ROW,
    WORKER_ROW,
    SHARED_SERVER,
    SHARED_SERVICE,
    SOURCE,
    STICKY,
    SHM,
)
