# SPDX-License-Identifier: Apache-2.0
"""What an earlier agent left, understood by its notes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from fairlead.dataplane.xdp import abi, records
from fairlead.dataplane.xdp.held import ServiceHeld, TableHeld
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.installation import Installation
from fairlead.dataplane.xdp.notes import read_note
from fairlead.dataplane.xdp.records import u32
from fairlead.dataplane.xdp.replies import reply_entry
from fairlead.model.net import IPAddress


def adopt(installation: Installation, clock: Callable[[], float]) -> None:
    """Fill the holdings from the notes, and the mirrors from the maps."""
    held, maps = installation.held, installation.kernel.maps
    for name, mirror in held.mirrors.items():
        if not mirror.array:
            mirror.adopt(maps[name].items())
    raw = maps["settings"].get(u32(0)) or b""
    held.settings = abi.Settings.unpack(raw)
    held.snat = _snat(raw, held.settings)
    held.mirrors["settings"].adopt([(u32(0), raw)])
    _adopt_servers(held)
    _adopt_tables(installation)
    lists = _adopt_services(held)
    _adopt_listeners(held)
    _adopt_access(held, lists)
    _adopt_replies(held, clock)
    for ids in (held.server_ids, held.service_ids):
        ids.former = range(ids.capacity)  # by whom is not known
    held.flush()


def _adopt_servers(held: Holdings) -> None:
    found = []
    for raw_key, raw in list(held.mirrors["names_server"].content.items()):
        try:
            spec, generation, gone = records.read_server_note(read_note(raw)["s"])
        except (KeyError, ValueError, TypeError):
            held.mirrors["names_server"].delete(raw_key)
            continue
        found.append((int.from_bytes(raw_key, "little"), spec, generation, gone))
    # Of several endpoints under one key the one that was noted last is the present one.
    newest: dict[str, tuple[int, int]] = {}
    for number, spec, generation, gone in found:
        if not gone:
            newest[spec.key] = max(newest.get(spec.key, (0, 0)), (generation, number))
    for number, spec, generation, gone in found:
        current = newest.get(spec.key) == (generation, number)
        held.adopt_server(number, spec, generation, gone=gone, current=current)


def _adopt_tables(installation: Installation) -> None:
    held = installation.held
    for raw_key, raw in list(held.mirrors["names_table"].content.items()):
        base = int.from_bytes(raw_key, "little")
        digest, size, count, check = records.read_table_note(raw)
        units = records.table_units(size, count)
        block = installation.slots(base, units)
        at = (size * 2 + abi.SLOT_UNIT - 1) // abi.SLOT_UNIT * abi.SLOT_UNIT
        members = tuple(int.from_bytes(block[at + 4 * n : at + 4 * n + 4], "little") for n in range(count))
        if digest in held.tables or not all(number in held.servers_by_id for number in members):
            held.mirrors["names_table"].delete(raw_key)
            continue
        keys = frozenset(held.servers_by_id[number].spec.key for number in members)
        with suppress(ValueError):
            held.adopt_table(TableHeld(digest, base, units, size, members, keys, check))


def _adopt_services(held: Holdings) -> dict[int, tuple[ServiceHeld, str]]:
    lists = {}
    for raw_key, raw in sorted(held.mirrors["names_service"].content.items()):
        try:
            spec, access, digest, gone = records.read_service_note(read_note(raw))
        except (KeyError, ValueError, TypeError):
            held.mirrors["names_service"].delete(raw_key)
            continue
        if spec.name in held.services and not gone:
            gone = True  # its successor was noted, and the agent ended before this one was
        number = int.from_bytes(raw_key, "little")
        held.adopt_service(number, spec, access, gone=gone)
        if digest is not None:
            lists[access] = (held.services_by_id[number], digest)
    return lists


def _adopt_listeners(held: Holdings) -> None:
    for raw_key, raw in list(held.mirrors["names_listener"].content.items()):
        service = held.services_by_id.get(int.from_bytes(raw, "little"))
        if service is None:
            held.mirrors["names_listener"].delete(raw_key)
            continue
        listener = records.read_listener_note(raw_key, service.spec.name)
        held.adopt_listener(listener, held.services.get(service.spec.name, service))
    taken = {(name, key) for it in held.listeners for name, key in records.listener_keys(it)}
    for name in ("listeners4", "listeners6", "ranges"):
        for key in list(held.mirrors[name].content):
            if (name, key) not in taken:
                held.mirrors[name].delete(key)
    addresses = {abi.packed(it.listen.address) for it in held.listeners}
    for key in held.mirrors["vips"].content.keys() - addresses:
        held.mirrors["vips"].delete(key)
    for listener, service in held.listeners.items():
        held.write_listener(listener, service)
    held.write_settings()


def _adopt_access(held: Holdings, lists: dict[int, tuple[ServiceHeld, str]]) -> None:
    """Who may connect stands in the map alone; a list that is not what its note says counts as another one."""
    by_list: dict[int, list[bytes]] = {}
    for key in list(held.mirrors["access"].content):
        number = int.from_bytes(key[4:8], "big")
        if number in lists:
            by_list.setdefault(number, []).append(key)
        else:
            held.mirrors["access"].delete(key)
    for number, (service, digest) in lists.items():
        ranges = records.access_ranges(by_list.get(number, []))
        if records.access_digest(ranges) == digest:
            service.spec = replace(service.spec, allowed=ranges)
        else:
            service.spec = replace(service.spec, allowed=None, seed=bytes(16))


def _adopt_replies(held: Holdings, clock: Callable[[], float]) -> None:
    longest = max((it.spec.idle_timeout_ms / 1000 for it in held.services_by_id.values()), default=0.0)
    for name in ("replies4", "replies6"):
        for raw_key, raw in list(held.mirrors[name].content.items()):
            key, entry = reply_entry(name, raw_key, raw, clock() + longest)
            if entry.server in held.servers_by_id:
                held.replies.adopt(key, entry)
                held.mark(key.address, abi.NEAR_SERVER)
            else:
                held.mirrors[name].delete(raw_key)
    held.replies.touched.clear()
    for service in held.services.values():
        held.claim(service)
        held.find_sources(service)
    held.write_replies()
    for server in held.servers_by_id.values():
        held.write_server_record(server)
    for service in held.services_by_id.values():
        held.write_service_record(service)


def _snat(raw: bytes, settings: abi.Settings) -> tuple[IPAddress, ...]:
    start = abi.Settings.LAYOUT.size
    count = settings.snat4 + settings.snat6
    return tuple(abi.unpacked(raw[start + 16 * n : start + 16 * (n + 1)]) for n in range(count))
