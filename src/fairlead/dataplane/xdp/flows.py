# SPDX-License-Identifier: Apache-2.0
"""The flow table, read as memory: what lives in it, page by page, and one flow by its tuple.

Invariants: nothing here writes. An entry that changes while it is read is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.blocks import Rows
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.errors import DataPlaneError
from fairlead.model.net import Endpoint

STATES = {abi.State.NEW: "new", abi.State.OPEN: "open", abi.State.FIN: "closing", abi.State.RST: "reset"}
_CHUNK = 1 << 16
_MASK64 = (1 << 64) - 1
_SPREAD = 0x94D049BB133111EB


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and its details."""

    entry: abi.Flow4
    details: abi.Details4


@dataclass(frozen=True, slots=True)
class Table:
    """One family's table: blocks of entries, and then of what stands beside each (``fl_block4``, ``fl_block6``)."""

    record: type[abi.Flow4]
    details_record: type[abi.Details4]
    places: int = 1
    region_bits: int = abi.REGION6_BITS

    @property
    def entries(self) -> Rows:
        """Where entries stand."""
        return Rows(self.record.LAYOUT, self._block, self.places)

    @property
    def details(self) -> Rows:
        """Where details stand, by the same places."""
        return Rows(self.details_record.LAYOUT, self._block, self.places, self.places * self.record.LAYOUT.size)

    def places_of(self, key: bytes, secret: bytes, places: int) -> Iterator[int]:
        """Where a key's entry may stand in a table of ``places``: from its home on, then elsewhere (``nth_block``)."""
        home, elsewhere = hash_of(key, secret, self.region_bits)
        blocks = range(abi.PROBES // self.places)
        for number in (*(home + n for n in blocks), *(elsewhere + (n << self.region_bits) for n in blocks)):
            first = number * self.places % places
            yield from range(first, first + self.places)

    @property
    def _block(self) -> int:
        return self.places * (self.record.LAYOUT.size + self.details_record.LAYOUT.size)


TABLES = {
    "flows4": Table(abi.Flow4, abi.Details4, abi.PLACES4, abi.REGION4_BITS),
    "flows6": Table(abi.Flow6, abi.Details6),
}


class FlowTable:
    """Both families' tables of one generation."""

    def __init__(self, maps: Mapping[str, BpfMap]) -> None:
        self._memory = {name: maps[name].memory() for name in TABLES}
        self._places = {name: maps[name].max_entries * table.places for name, table in TABLES.items()}
        self._rows = {name: (table.entries, table.details) for name, table in TABLES.items()}

    def close(self) -> None:
        """Let go."""
        for memory in self._memory.values():
            memory.close()

    def walk(self, start: int) -> Iterator[tuple[int, Found]]:
        """All used entries from a position on, with the position after each."""
        base = 0
        for name, places in self._places.items():
            entries, _ = self._rows[name]
            for first in range(max(0, start - base) // _CHUNK * _CHUNK, places, _CHUNK):
                for place in entries.used(self._memory[name], range(first, min(first + _CHUNK, places))):
                    if base + place >= start:
                        found = self.at(name, place)
                        if found is not None:
                            yield base + place + 1, found
            base += places

    def at(self, name: str, place: int) -> Found | None:
        """One entry; None while it is written."""
        table, memory, (entries, details) = TABLES[name], self._memory[name], self._rows[name]
        entry = table.record.unpack(entries.raw(memory, place))
        beside = table.details_record.unpack(details.raw(memory, place))
        return None if entry.lock & 1 else Found(entry, beside)

    def find(self, key: bytes, secret: bytes) -> tuple[int, Found] | None:
        """Place and entry of a ``flow_key``."""
        name = "flows4" if len(key) == _KEY4 else "flows6"
        entries = self._rows[name][0]
        for place in TABLES[name].places_of(key, secret, self._places[name]):
            if entries.raw(self._memory[name], place).startswith(key):
                found = self.at(name, place)
                if found is not None and found.entry.kind not in {abi.Kind.FREE, abi.Kind.GONE}:
                    return place, found
        return None


_KEY4 = 13


def flow_key(source: Endpoint, destination: Endpoint, protocol: int) -> bytes:
    """The start of an entry: addresses, ports, protocol."""
    ports = source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")
    return source.address.packed + destination.address.packed + ports + bytes((protocol,))


def hash_of(key: bytes, secret: bytes, region_bits: int) -> tuple[int, int]:
    """The halves of ``hash4`` and ``hash6`` of bpf/flow.h: the blocks where a key's places begin."""
    *words, rest = (int.from_bytes(key[at : at + 8], "little") for at in range(0, len(key), 8))
    first, second = int.from_bytes(secret[:8], "little"), int.from_bytes(secret[8:], "little")
    common = (_mix(first, words[0]) + second) & _MASK64
    for word in (*words[1:], rest & ~abi.NEIGHBOURS):
        common = _mix(common, word)
    region = (common * _SPREAD & _MASK64) >> 32 & ~((1 << region_bits) - 1)
    whole = _mix(common, rest)
    return region | (whole * _SPREAD & _MASK64) >> 64 - region_bits, whole & 0xFFFFFFFF


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
