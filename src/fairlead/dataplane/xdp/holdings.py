# SPDX-License-Identifier: Apache-2.0
"""All that the XDP data plane holds, by name and by id, and every entry of every map that follows from it.

Invariants: an id means one endpoint, or one service with one forwarding, for life; it is given back when no flow and
no entry holds it any more. Notes are written before what they are about, and go after it, so that a later agent can
make sense of whatever a killed one left.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import replace

from fairlead.dataplane.xdp import abi, records
from fairlead.dataplane.xdp.held import MIRRORS, ServerHeld, ServiceHeld, TableHeld
from fairlead.dataplane.xdp.mirror import Mirror
from fairlead.dataplane.xdp.notes import AGENT_MAPS, write_note
from fairlead.dataplane.xdp.ports import Ports
from fairlead.dataplane.xdp.records import u32
from fairlead.dataplane.xdp.replies import Claim, Replies, ReplyKey, claims, reply_place
from fairlead.dataplane.xdp.space import Extents, Ids
from fairlead.errors import DataPlaneError
from fairlead.model.net import IPAddress
from fairlead.model.service import Forwarding
from fairlead.model.state import FlowTreatment, Listener, ServerSpec, ServiceMode, ServiceSpec, TableSpec

FLOW_FLAGS = {0: 0, 1: abi.SERVER_RESET, 2: abi.SERVER_UNPIN}  # by FlowTreatment
_SERVER_NOTE = AGENT_MAPS["names_server"][1]  # bytes
GUESS_WITHOUT_END_S = 3600.0  # for services whose flows may be idle for ever


class Holdings:
    """What is held.

    Args:
        hertz: Jiffies per second.
        clock: Monotonic seconds.
        source_of: The outer source address of tunnels to a server, or None.
    """

    def __init__(
        self, hertz: int, clock: Callable[[], float] = time.monotonic,
        source_of: Callable[[IPAddress], IPAddress | None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.mirrors = {it.name: Mirror(it.name, array=it.array, significant=it.significant) for it in MIRRORS}
        self.servers: dict[str, ServerHeld] = {}
        self.servers_by_id: dict[int, ServerHeld] = {}
        self.same_key: dict[str, tuple[ServerHeld, ...]] = {}
        self.tables: dict[str, TableHeld] = {}
        self.services: dict[str, ServiceHeld] = {}
        self.services_by_id: dict[int, ServiceHeld] = {}
        self.unsettled: set[int] = set()  # those that might be settled (settle.py)
        self.listeners: dict[Listener, ServiceHeld] = {}
        self.replies = Replies()
        self.server_ids, self.service_ids, self.access_ids = Ids(1), Ids(1), Ids(1 << 31)
        self.extents = Extents(1)
        self.near: dict[int, int] = {}  # bits of the address filter
        self.settings = abi.Settings()
        self.snat: tuple[IPAddress, ...] = ()
        self.write_slots: Callable[[int, bytes], None] = lambda _base, _block: None
        self.write_near: Callable[[int, int], None] = lambda _index, _bit: None
        self.reset_counters: Callable[[str, int], None] = lambda _kind, _number: None
        self.moves = 0  # grows whenever a server or a listener comes or goes
        self._hertz = hertz
        self._clock = clock
        self._source_of = source_of
        self._ports = Ports()
        self._uses: dict[str, int] = {}  # by server key: tables that name it
        self._generation = 0
        self._later: list[tuple[float, Callable[[], None]]] = []

    # Servers

    def put_server(self, spec: ServerSpec) -> None:
        """Add a server, or change it; another endpoint is another id, and flows stay where they are."""
        key = spec.key
        held = self.servers.get(key)
        if held is None or held.spec.endpoint != spec.endpoint:
            number = self.server_ids.take()
            if number is None:
                raise DataPlaneError("no id is left for another server: flows still hold those of deleted ones")
            self.moves += 1
            self._generation = self._generation % 0xFFFF + 1
            held = ServerHeld(number, spec, self._generation, abi.packed(spec.endpoint.address))
            self._add_server(held)
            self.servers[key] = held
            self._reset_counters("server", number, self.server_ids)
        held.spec = spec
        self._write_server(held)
        for it in self.same_key[key]:
            if it is not held and it.spec.flows is not spec.flows and not it.gone:
                it.spec = it.spec._replace(flows=spec.flows)
                self._write_server(it)

    def _add_server(self, held: ServerHeld) -> None:
        self.servers_by_id[held.number] = held
        others = self.same_key.get(held.spec.key)
        self.same_key[held.spec.key] = (*others, held) if others else (held,)

    def knows(self, spec: ServerSpec) -> bool:
        """Whether it is held at this endpoint."""
        held = self.servers.get(spec.key)
        return held is not None and held.spec.endpoint == spec.endpoint

    def _reset_counters(self, kind: str, number: int, ids: Ids) -> None:
        if number in ids.former:
            self.reset_counters(kind, number)

    def delete_server(self, key: str) -> None:
        """Forget a server; flows that are left are reset when they turn up."""
        if self._uses.get(key):
            user = min(digest for digest, table in self.tables.items() if key in table.keys)
            raise DataPlaneError(f"delete server {key}: table {user} names it")
        self.moves += 1
        self.servers.pop(key, None)
        for held in self.same_key.get(key, ()):
            if not held.gone:
                held.gone = True
                held.spec = held.spec._replace(flows=FlowTreatment.RESET)
                self._write_server(held)

    def _write_server(self, held: ServerHeld) -> None:
        note = records.server_note(held.spec, held.generation, gone=held.gone)
        self.mirrors["names_server"].put(u32(held.number), write_note(note, _SERVER_NOTE))
        self.write_server_record(held)

    def write_server_record(self, held: ServerHeld) -> None:
        """Write what the program reads of a server."""
        flags = FLOW_FLAGS[held.spec.flows]
        held.ambiguous = self.replies.is_ambiguous(held.number)
        if held.ambiguous:
            flags |= abi.SERVER_AMBIGUOUS
        port = held.spec.endpoint.port
        raw = records.server_record(held.address, port, held.generation, flags, held.source)
        self.mirrors["servers"].put(u32(held.number), raw)

    def adopt_server(self, number: int, spec: ServerSpec, generation: int, *, gone: bool, current: bool) -> None:
        """Take a server over from its note."""
        self.moves += 1
        held = ServerHeld(number, spec, generation, abi.packed(spec.endpoint.address), gone)
        self.server_ids.use(number)
        self._add_server(held)
        self._generation = max(self._generation, generation)
        if current:
            self.servers[spec.key] = held

    # Tables

    def put_table(self, digest: str, spec: TableSpec, slots: array[int]) -> None:
        """Add a table; one that is there is written again elsewhere, for what it was written to may be damaged."""
        keys = frozenset(member.key for member in spec.members)
        missing = [key for key in keys if key not in self.servers]
        if missing:
            raise DataPlaneError(f"table {digest[:8]}: no server {min(missing)}")
        members = tuple(self.servers[member.key].number for member in spec.members)
        block = abi.table_block(list(members), slots.tobytes())
        units = len(block) // abi.SLOT_UNIT
        base = self.extents.take(units, self._clock())
        if base is None:
            raise DataPlaneError("the memory of slot tables is full; tables that were replaced a moment ago still rest")
        self.write_slots(base, block)
        before = self.tables.get(digest)
        held = TableHeld(digest, base, units, len(slots), members, keys, records.block_digest(block))
        self._add_table(held)
        self._note_table(held)
        if before is not None:
            held.users = before.users
            for name in before.users:
                self._write_service(self.services[name])
            self._retire_table(before)

    def _add_table(self, held: TableHeld) -> None:
        self.tables[held.digest] = held
        for key in held.keys:
            self._uses[key] = self._uses.get(key, 0) + 1

    def _note_table(self, held: TableHeld) -> None:
        self.mirrors["names_table"].put(
            u32(held.base), records.table_note(held.digest, held.size, len(held.members), held.check)
        )

    def delete_table(self, digest: str) -> None:
        """Forget a table; its memory is used again when no packet can be reading it."""
        held = self.tables.get(digest)
        if held is None:
            return
        if held.users:
            raise DataPlaneError(f"delete table {digest[:8]}: service {min(held.users)} names it")
        del self.tables[digest]
        self._retire_table(held)

    def _retire_table(self, held: TableHeld) -> None:
        for key in held.keys:
            if left := self._uses.pop(key) - 1:
                self._uses[key] = left
        self.mirrors["names_table"].delete(u32(held.base))
        self.extents.retire(held.base, held.units, self._clock())

    def adopt_table(self, held: TableHeld) -> None:
        """Take a table over."""
        self.extents.use(held.base, held.units)
        self._add_table(held)

    # Services

    def put_service(self, spec: ServiceSpec) -> None:
        """Add a service, or change it; with another forwarding it is another id, and flows stay what they are."""
        records.refuse_unsupported(spec)
        if (spec.table is not None) is not (spec.mode is ServiceMode.FORWARD):
            raise DataPlaneError(f"put service {spec.name}: table and mode differ")
        if spec.table is not None and spec.table not in self.tables:
            raise DataPlaneError(f"put service {spec.name}: no table {spec.table}")
        held = self.services.get(spec.name)
        fresh = held is None or held.spec.forwarding is not spec.forwarding
        if fresh:
            number = self.service_ids.take()
            if number is None:
                raise DataPlaneError("no id is left for another service: flows still hold those of deleted ones")
            former, held = held, ServiceHeld(number, spec)
            self.services[spec.name] = self.services_by_id[number] = held
            self._reset_counters("service", number, self.service_ids)
        else:
            former = None
        assert held is not None
        if fresh or held.spec.allowed != spec.allowed:
            self._write_access(held, spec, same=not fresh)
        before = (former or held).spec.table
        held.spec = spec
        if spec.table is not None:
            self.tables[spec.table].users.add(spec.name)
        if before not in {None, spec.table} and before in self.tables:
            self.tables[before].users.discard(spec.name)
        self.claim(held)
        self.find_sources(held)
        self._write_service(held)
        if former is not None:
            self._succeed(former, held)

    def find_sources(self, held: ServiceHeld) -> None:
        """Tunnels need an outer source address for every server."""
        if held.spec.forwarding is not Forwarding.TUNNEL or held.spec.table is None:
            return
        for number in self.tables[held.spec.table].members:
            server = self.servers_by_id[number]
            if server.source is None:
                server.source = self._source_of(server.spec.endpoint.address)
                self.write_server_record(server)

    def _write_access(self, held: ServiceHeld, spec: ServiceSpec, *, same: bool) -> None:
        """Another list under another number; the service goes over to it in one step."""
        old = held.access if same else 0
        if spec.allowed is None:
            held.access = 0
        else:
            number = self.access_ids.take()
            assert number is not None
            held.access = number
            for key in records.access_keys(held.access, spec.allowed):
                self.mirrors["access"].put(key, u32(1))
        if old:
            raw = old.to_bytes(4, "big")
            keys = [key for key in self.mirrors["access"].content if key[4:8] == raw]
            self._later.append((self._clock() + 1.0, lambda: self._drop_access(keys)))

    def _drop_access(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.mirrors["access"].delete(key)

    def _write_service(self, held: ServiceHeld) -> None:
        note = records.service_note(held.spec, held.access, gone=held.gone)
        self.mirrors["names_service"].put(u32(held.number), write_note(note, AGENT_MAPS["names_service"][1]))
        self.write_service_record(held)

    def write_service_record(self, held: ServiceHeld) -> None:
        """Write what the program reads of a service."""
        table = self.tables[held.spec.table] if held.spec.table is not None and not held.gone else None
        place = (table.base, table.size) if table is not None else (0, 0)
        raw = records.service_record(held.spec, place, held.access, self._hertz)
        self.mirrors["services"].put(u32(held.number), raw)
        held.written_at = self._clock()
        if not held.gone and records.may_settle(held.spec, self._hertz):
            self.unsettled.add(held.number)
        else:
            self.unsettled.discard(held.number)

    def settle(self, number: int) -> None:
        """Say of a service that no flow but those marked has another server than its slot names."""
        raw = self.mirrors["services"].content[u32(number)]
        self.mirrors["services"].put(u32(number), abi.settled(raw, on=True))
        self.unsettled.discard(number)

    def unsettle(self) -> None:
        """Nothing is known of flows any more."""
        for held in self.services_by_id.values():
            self.write_service_record(held)

    def _succeed(self, former: ServiceHeld, held: ServiceHeld) -> None:
        """Listeners go over to the new id; the old one ends with its flows."""
        held.listeners, former.listeners = former.listeners, set()
        for listener in held.listeners:
            self.listeners[listener] = held
            self.write_listener(listener, held)
        self.claim(former)
        self.claim(held)
        former.gone = True
        self._write_service(former)

    def delete_service(self, name: str) -> None:
        """Forget a service; its flows go on."""
        held = self.services.get(name)
        if held is None:
            return
        if held.listeners:
            raise DataPlaneError(f"delete service {name}: it has a listener")
        del self.services[name]
        if held.spec.table is not None:
            self.tables[held.spec.table].users.discard(name)
        held.gone = True
        self.claim(held)
        held.spec = replace(held.spec, table=None, mode=ServiceMode.REJECT)
        self._write_service(held)

    def adopt_service(self, number: int, spec: ServiceSpec, access: int, *, gone: bool) -> None:
        """Take a service over from its note."""
        held = ServiceHeld(number, spec, access, gone)
        self.service_ids.use(number)
        self.services_by_id[number] = held
        if access:
            self.access_ids.use(access)
        if not gone:
            self.services[spec.name] = held
            if spec.table in self.tables:
                self.tables[spec.table].users.add(spec.name)

    # Listeners

    def open(self, listener: Listener) -> None:
        """Take packets there."""
        held = self.services.get(listener.service)
        if held is None:
            raise DataPlaneError(f"open {listener.listen}: no service {listener.service}")
        if other := self._ports.conflict(listener):
            raise DataPlaneError(f"open {listener.listen}: in use by service {other.service}")
        if listener not in self.listeners:
            self._count_listener(listener, held)
            self.claim(held)
            self.write_service_record(held)  # unsettled: flows may be there from before
        self.write_listener(listener, held)

    def _count_listener(self, listener: Listener, held: ServiceHeld) -> None:
        self.moves += 1
        self.listeners[listener] = held
        held.listeners.add(listener)
        if self._ports.open(listener):
            self.mark(abi.packed(listener.listen.address), abi.NEAR_VIP)

    def write_listener(self, listener: Listener, held: ServiceHeld) -> None:
        """Write what the program reads of a listener."""
        self.mirrors["vips"].put(abi.packed(listener.listen.address), u32(1))
        self.mirrors["names_listener"].put(records.listener_note(listener), u32(held.number))
        for name, key in records.listener_keys(listener):
            self.mirrors[name].put(key, u32(held.number))
        self._tell_of_ranges(listener)

    def close(self, listener: Listener) -> None:
        """Take no new flows there."""
        held = self.listeners.pop(listener, None)
        if held is None:
            return
        self.moves += 1
        held.listeners.discard(listener)
        for name, key in records.listener_keys(listener):
            self.mirrors[name].delete(key)
        self.mirrors["names_listener"].delete(records.listener_note(listener))
        if self._ports.close(listener):
            self.mirrors["vips"].delete(abi.packed(listener.listen.address))
            # The bit stays: flows go on after their listener. It goes when the filter is made anew.
        self.claim(held)
        self._tell_of_ranges(listener)

    def _tell_of_ranges(self, listener: Listener) -> None:
        if listener.listen.first != listener.listen.last:
            self.write_settings()

    def adopt_listener(self, listener: Listener, held: ServiceHeld) -> None:
        """Take a listener over from its note."""
        self._count_listener(listener, held)

    def write_settings(self) -> None:
        """Set what all services share."""
        wide = len(self.mirrors["ranges"].content)
        self.mirrors["settings"].put(u32(0), replace(self.settings, wide=wide).with_snat(self.snat))

    # Replies and the address filter

    def claim(self, held: ServiceHeld) -> None:
        """Have the replies of its servers turned back to it."""
        if held.spec.forwarding is not Forwarding.NAT:
            return
        wanted: frozenset[tuple[ReplyKey, Claim]] = frozenset()
        if held.listeners and not held.gone:
            wanted = self._claims_of(held)
        if wanted == held.claims:
            return
        idle = held.spec.idle_timeout_ms / 1000 or GUESS_WITHOUT_END_S
        before, held.claims = held.claims, wanted
        gone, new = (before - wanted, wanted - before) if before else (before, wanted)
        self.replies.change(gone, new, self._clock() + idle)
        for address in {key.address for key, _ in new}:
            self.mark(address, abi.NEAR_SERVER)
        self.write_replies()

    def _claims_of(self, held: ServiceHeld) -> frozenset[tuple[ReplyKey, Claim]]:
        """Those of its table, and those it had while it has none: its flows are not over yet."""
        numbers: Iterable[int]
        if held.spec.table is None:
            numbers = {claim.server for _, claim in held.claims}
        else:
            numbers = self.tables[held.spec.table].members
        found = [self.servers_by_id[number] for number in numbers if number in self.servers_by_id]
        members = [(it.number, it.address, it.spec.endpoint.port) for it in found]
        listens = [(it.listen.address, it.listen.first, it.listen.last) for it in held.listeners]
        return claims(held.number, members, listens, records.PROTOCOLS[held.spec.protocol])

    def write_replies(self) -> None:
        """Write the entries that changed, and whether their servers are ambiguous."""
        touched, self.replies.touched = self.replies.touched, {}
        for key, entry in touched.items():
            name, raw = reply_place(key)
            self.mirrors[name].put(raw, entry.record())
        turned, self.replies.turned = self.replies.turned, set()
        for number in turned:
            server = self.servers_by_id.get(number)
            if server is not None and server.ambiguous is not self.replies.is_ambiguous(number):
                self.write_server_record(server)

    def mark(self, address: bytes, bit: int) -> None:
        """A reason why packets of this (packed) address matter."""
        index = abi.near_index(address)
        bits = self.near.get(index, 0)
        if bit & ~bits:
            self.near[index] = bits | bit
            self.write_near(index, bit)

    # Time

    def later(self) -> None:
        """Do what had to wait, and end guesses whose time has passed."""
        now = self._clock()
        due = [action for moment, action in self._later if moment <= now]
        self._later = [it for it in self._later if it[0] > now]
        for action in due:
            action()
        self.replies.settle(now)
        self.write_replies()

    def flush(self) -> None:
        """Write everything that waits, in an order that works wherever it is cut."""
        for mirror in self.mirrors.values():
            mirror.flush_puts()
        for mirror in reversed(self.mirrors.values()):
            mirror.flush_deletes()
