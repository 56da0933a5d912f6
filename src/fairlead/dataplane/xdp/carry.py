# SPDX-License-Identifier: Apache-2.0
"""Flows of tables with another layout, carried over: so an upgrade, or the way back, keeps them.

Every generation notes how the entries of its flow tables are laid out. Whoever comes after it, older or newer, reads
them by that, finds the same services and servers under their names, and stores the flows in its own tables.

Invariant: a flow that the new tables have already is left alone, so that flows may be carried while packets come.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

from fairlead.dataplane.xdp import abi, flows, records
from fairlead.dataplane.xdp.blocks import Rows
from fairlead.dataplane.xdp.held import ServerHeld, ServiceHeld
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.layout import Layout
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject, map_definitions
from fairlead.dataplane.xdp.notes import read_note, write_note
from fairlead.dataplane.xdp.records import u32
from fairlead.errors import DataPlaneError

# Keys of `names_meta`, after the one of the generation's own note: what is noted, and the map where it stands.
_NOTES: Mapping[int, tuple[str, str, Rows]] = {
    1: ("flows4", "flows4", flows.TABLES["flows4"].entries),
    2: ("details4", "flows4", flows.TABLES["flows4"].details),
    3: ("flows6", "flows6", flows.TABLES["flows6"].entries),
    4: ("details6", "flows6", flows.TABLES["flows6"].details),
}
_WORDS_NOTE = 5
_WORDS: Mapping[str, type[IntEnum]] = {"kind": abi.Kind, "state": abi.State}
_NEEDED = frozenset(("src", "dst", "sport", "dport", "proto", "kind", "state", "seen", "server", "service"))
_MASK = 0xFFFFFFFF


def note_layouts(meta: BpfMap) -> None:
    """Leave word of how this version's flow tables are laid out."""
    for number, (name, where, rows) in _NOTES.items():
        stand = {"in": where, "block": rows.block, "places": rows.places, "at": rows.at}
        note = {"map": name, "members": rows.layout.text, **stand}
        meta.put(u32(number), write_note(note, meta.value_size))
    words = {name: {it.name: it.value for it in enum} for name, enum in _WORDS.items()}
    meta.put(u32(_WORDS_NOTE), write_note(words, meta.value_size))


class _Table:
    """One family's flows of the earlier generation, read by its own word.

    Raises:
        DataPlaneError: It left none that is understood.
    """

    def __init__(self, maps: Mapping[str, BpfMap], name: str, notes: Mapping[str, Any], stack: ExitStack) -> None:
        self.family = int(name[-1])
        beside = name.replace("flows", "details")
        self._entries, self._details = _rows(notes, name, maps), _rows(notes, beside, maps)
        self._names = [member for rows in (self._entries, self._details) for member, _ in rows.layout.members]
        if missing := _NEEDED - set(self._names):
            raise DataPlaneError(f"its {name} have no {min(missing)}")
        self._places = maps[name].max_entries * self._entries.places
        self._born_at = dict(self._details.layout.members).get("born")
        self._memory = maps[name].memory()
        stack.callback(self._memory.close)
        self._beside = maps[_where(notes, beside)].memory()
        stack.callback(self._beside.close)

    def read(self, since: int | None) -> Iterator[dict[str, Any]]:
        """All used entries, or those that were born no earlier than ``since`` (jiffies)."""
        for place in self._entries.used(self._memory, range(self._places)):
            if since is not None and self._born_at is not None:
                (born,) = struct.unpack_from("<I", self._beside, self._details.offset(place) + self._born_at)
                if (born - since) & _MASK >= 1 << 31:
                    continue
            entry = self._entries.layout.unpack(self._entries.raw(self._memory, place))
            beside = self._details.layout.unpack(self._details.raw(self._beside, place))
            yield dict(zip(self._names, (*entry, *beside), strict=True))


class Carrier:
    """Carries flows from one generation's tables to those of the next.

    Args:
        program: Object file of the program ``carry``.
        before: The generation that has the flows.
        after: The maps that are to have them.
        held: What stands in ``after``.
        constants: Of the programs of ``after``.

    Raises:
        DataPlaneError: What the earlier generation noted is not understood.
    """

    def __init__(
        self,
        program: Path,
        before: Mapping[str, BpfMap],
        after: Mapping[str, BpfMap],
        held: Holdings,
        constants: Mapping[str, int],
    ) -> None:
        self.carried = 0
        self._stack = ExitStack()
        try:
            notes = _notes(before["names_meta"])
            self._words = {
                name: {value: enum[word] for word, value in notes[name].items() if word in enum.__members__}
                for name, enum in _WORDS.items()
            }
            self._tables = [_Table(before, name, notes, self._stack) for name in flows.TABLES]
            self._numbers = _Numbers(before, held)
            shared = {name: after[name] for name in map_definitions(program) if name in after and name != "scratch"}
            self._loaded = self._stack.enter_context(LoadedObject(program, constants=constants, reuse=shared))
            self._buffer = self._loaded.maps["carried"].memory()
            self._stack.callback(self._buffer.close)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            self._stack.close()
            raise DataPlaneError(f"what it noted is not understood ({error!r})") from error
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def carry(self, since: int | None = None) -> None:
        """Carry all flows, or those that were born no earlier than ``since`` (jiffies)."""
        batch = bytearray()
        for table in self._tables:
            for flow in table.read(since):
                batch += self._translated(flow, table.family)
                if len(batch) == abi.Carried.LAYOUT.size * abi.CARRIED:
                    self._store(batch)
                    batch.clear()
        self._store(batch)

    def _store(self, batch: bytearray) -> None:
        if not batch:
            return
        size = abi.Carried.LAYOUT.size
        self._buffer[: len(batch)] = batch
        self._loaded.programs["carry"].call(u32(len(batch) // size))
        at = dict(abi.Carried.LAYOUT.members)["stored"]
        self.carried += sum(self._buffer[at : len(batch) : size])

    def _translated(self, flow: Mapping[str, Any], family: int) -> bytes:
        """The flow as this version would have it; empty when its service or its server is no more."""
        server = self._numbers.server(flow["server"], flow.get("generation"))
        service = self._numbers.services.get(flow["service"])
        kind, state = self._words["kind"].get(flow["kind"]), self._words["state"].get(flow["state"])
        if server is None or service is None or state is None or kind in {None, abi.Kind.FREE, abi.Kind.GONE}:
            return b""
        src, dst, near, far = (_wide(flow.get(name, bytes(4))) for name in ("src", "dst", "near", "far"))
        sport, dport, near_port, far_port = (flow.get(name, 0) for name in ("sport", "dport", "near_port", "far_port"))
        return abi.Carried(
            src,
            dst,
            near,
            far,
            flow.get("octets", 0),
            flow.get("packets", 0),
            flow["seen"],
            flow.get("born", flow["seen"]),
            server.number,
            sport,
            dport,
            near_port,
            far_port,
            service.number,
            server.generation,
            self._numbers.table(flow.get("table"), service),
            flow["proto"],
            family,
            int(kind),
            int(state),
        ).pack()


class _Numbers:
    """What an earlier generation's numbers of services, servers and tables mean here."""

    def __init__(self, before: Mapping[str, BpfMap], held: Holdings) -> None:
        self._held = held
        self._servers: dict[int, tuple[int, ServerHeld]] = {}
        self.services: dict[int, ServiceHeld] = {}
        self._bases: dict[int, int] = {}
        for number, note in _each(before["names_server"]):
            with suppress(KeyError, ValueError, TypeError):
                spec, generation, gone = records.read_server_note(note["s"])
                present = held.servers.get(spec.key)
                if not gone and present is not None and present.spec.endpoint == spec.endpoint:
                    self._servers[number] = generation, present
        for number, note in _each(before["names_service"]):
            with suppress(KeyError, ValueError, TypeError):
                known = held.services.get(note["spec"]["name"])
                if not note["gone"] and known is not None and known.spec.forwarding.value == note["spec"]["forwarding"]:
                    self.services[number] = known
        for key, raw in before["names_table"].items():
            table = held.tables.get(records.read_table_note(raw)[0])
            if table is not None:
                self._bases[int.from_bytes(key, "little") & 0xFFFF] = table.base & 0xFFFF

    def server(self, number: int, generation: int | None) -> ServerHeld | None:
        """The server of a flow, unless its number has become another server's."""
        noted, present = self._servers.get(number, (None, None))
        return present if generation in {None, noted} else None

    def table(self, base: int | None, service: ServiceHeld) -> int:
        """The mark of the table by which a server was chosen; of one that is gone, a mark that the service lacks."""
        if base in self._bases:
            return self._bases[base]
        present = self._held.tables.get(service.spec.table or "")
        return ((present.base if present is not None else 0) ^ 0x8000) & 0xFFFF


def _where(notes: Mapping[str, Any], name: str) -> str:
    """The map where records stand; before blocks there was one of the same name."""
    return str(notes[name].get("in", name))


def _rows(notes: Mapping[str, Any], name: str, maps: Mapping[str, BpfMap]) -> Rows:
    note = notes[name]
    layout = Layout(name, note["members"])
    rows = Rows(layout, note.get("block", layout.size), note.get("places", 1), note.get("at", 0))
    fits = rows.places > 0 <= rows.at and rows.at + rows.places * layout.size <= rows.block
    if not fits or rows.block != maps[_where(notes, name)].value_size:
        raise DataPlaneError(f"its {name} are not as it noted")
    return rows


def _notes(meta: BpfMap) -> dict[str, Any]:
    """What a generation noted about its tables, and which words its numbers stand for."""
    notes: dict[str, Any] = {}
    for number, note in _each(meta):
        if number == _WORDS_NOTE:
            notes.update(note)
        elif number:
            notes[note["map"]] = note
    return notes


def _each(notes: BpfMap) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, raw in notes.items():
        yield int.from_bytes(key, "little"), read_note(raw)


def _wide(address: bytes) -> bytes:
    return abi.packed(records.address_of(address)) if len(address) == 4 else address
