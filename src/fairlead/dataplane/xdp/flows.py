# SPDX-License-Identifier: Apache-2.0
"""The flow table, read as memory: what lives in it, page by page, and one flow by its tuple.

Invariants: nothing here writes. An entry that changes while it is read is passed over.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.layout import Record
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.errors import DataPlaneError
from fairlead.model.net import Endpoint

R = TypeVar("R", bound=Record)

STATES = {abi.State.NEW: "new", abi.State.OPEN: "open", abi.State.FIN: "closing", abi.State.RST: "reset"}
_CHUNK = 1 << 16
_USED = re.compile(rb"[^\0]")
_MASK64 = (1 << 64) - 1
PROBES = 8


@dataclass(frozen=True, slots=True)
class Table:
    """One family's table, and what stands beside it by the same index."""

    record: type[abi.Flow4]
    details: type[abi.Details4]

    @property
    def size(self) -> int:
        """Bytes of an entry."""
        return self.record.LAYOUT.size

    @property
    def kind_at(self) -> int:
        """Where in an entry its kind stands; before it stands the key."""
        return dict(self.record.LAYOUT.members)["kind"]


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and its details."""

    entry: abi.Flow4
    details: abi.Details4


TABLES = {
    "flows4": Table(abi.Flow4, abi.Details4),
    "flows6": Table(abi.Flow6, abi.Details6),
}
_DETAILS = {"flows4": "details4", "flows6": "details6"}


class FlowTable:
    """Both families' tables of one generation."""

    def __init__(self, maps: Mapping[str, BpfMap]) -> None:
        self._memory = {name: maps[name].memory() for name in (*TABLES, *_DETAILS.values())}
        self._entries = {name: maps[name].max_entries for name in TABLES}

    def close(self) -> None:
        """Let go."""
        for memory in self._memory.values():
            memory.close()

    def walk(self, start: int) -> Iterator[tuple[int, Found]]:
        """All used entries from a position on, with the position after each."""
        base = 0
        for name, table in TABLES.items():
            entries = self._entries[name]
            for first in range(max(0, start - base) // _CHUNK * _CHUNK, entries, _CHUNK):
                part = range(first, min(first + _CHUNK, entries))
                for index in used(self._memory[name], table.size, table.kind_at, part):
                    if base + index >= start:
                        found = self.at(name, index)
                        if found is not None:
                            yield base + index + 1, found
            base += entries

    def at(self, name: str, index: int) -> Found | None:
        """One entry; None while it is written."""
        entry = self._read(name, TABLES[name].record, index)
        details = self._read(_DETAILS[name], TABLES[name].details, index)
        return None if entry.lock & 1 else Found(entry, details)

    def _read(self, name: str, record: type[R], index: int) -> R:
        size = record.LAYOUT.size
        return record.unpack(self._memory[name][index * size : (index + 1) * size])

    def find(self, key: bytes, secret: bytes) -> tuple[int, Found] | None:
        """Index and entry of a ``flow_key``."""
        name = "flows4" if len(key) == _KEY4 else "flows6"
        table, mask = TABLES[name], self._entries[name] - 1
        home = home_of(key, secret)
        for probe in range(PROBES):
            index = (home + probe) & mask
            at = index * table.size
            if self._memory[name][at : at + len(key)] == key:
                found = self.at(name, index)
                if found is not None and found.entry.kind not in {abi.Kind.FREE, abi.Kind.GONE}:
                    return index, found
        return None


def used(memory: mmap.mmap, size: int, kind_at: int, part: range) -> list[int]:
    """Numbers of the entries in a part of a table that are used: their kind is not 0."""
    with memoryview(memory) as whole:
        kinds = bytes(whole[part.start * size + kind_at : part.stop * size : size])
    return [part.start + match.start() for match in _USED.finditer(kinds)]


_KEY4 = 13


def flow_key(source: Endpoint, destination: Endpoint, protocol: int) -> bytes:
    """The start of an entry: addresses, ports, protocol."""
    ports = source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")
    return source.address.packed + destination.address.packed + ports + bytes((protocol,))


def home_of(key: bytes, secret: bytes) -> int:
    """Where the places of a key begin: ``home4`` and ``home6`` of bpf/flow.h."""
    words = [int.from_bytes(key[at : at + 8], "little") for at in range(0, len(key), 8)]
    first, second = int.from_bytes(secret[:8], "little"), int.from_bytes(secret[8:], "little")
    mixed = (_mix(first, words[0]) + second) & _MASK64
    for word in words[1:]:
        mixed = _mix(mixed, word)
    return (mixed * 0x94D049BB133111EB & _MASK64) >> 32 & ~1


def _mix(mixed: int, word: int) -> int:
    mixed = (mixed ^ word) * 0xBF58476D1CE4E5B9 & _MASK64
    return mixed ^ mixed >> 32


def page(
    table: FlowTable, cursor: str | None, limit: int, wanted: Callable[[abi.Flow4], bool]
) -> tuple[list[Found], str | None]:
    """The next ``limit`` flows that are ``wanted``, and where to go on.

    Raises:
        DataPlaneError: The cursor is none of ours.
    """
    if cursor is not None and not cursor.isdecimal():
        raise DataPlaneError(f"{cursor!r} is not a cursor of a list of connections; start again without one")
    found: list[Found] = []
    at = int(cursor or 0)
    for after, it in table.walk(at):
        if it.entry.kind == abi.Kind.TO_SERVER and wanted(it.entry):
            if len(found) == limit:
                return found, str(at)
            found.append(it)
            at = after
    return found, None
