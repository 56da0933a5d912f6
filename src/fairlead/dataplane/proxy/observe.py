# SPDX-License-Identifier: Apache-2.0
"""From the dumps of all workers to one observed state, and to what only some of them hold.

Invariant: pure. What any worker lacks or holds otherwise is not in the state, so that a plan puts it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead.dataplane.proxy import abi, codec
from fairlead.dataplane.proxy.listeners import Port, ports_of
from fairlead.dataplane.proxy.registry import Registry
from fairlead.model.net import Listen, Protocol
from fairlead.model.state import ForwardingState, Listener, ServerSpec, ServiceSpec, TableSpec

Held = tuple[int, ServerSpec] | codec.TableHeld | codec.ServiceHeld | codec.ListenHeld
Cache = dict[bytes, Held]

_DECODERS: dict[abi.Type, Callable[[bytes], Held]] = {
    abi.Type.SERVER_PUT: codec.decode_server,
    abi.Type.TABLE_PUT: codec.decode_table,
    abi.Type.SERVICE_PUT: codec.decode_service,
    abi.Type.LISTEN_PUT: codec.decode_listen,
}


@dataclass(frozen=True, slots=True)
class Stray:
    """Something that the worker of ``slot`` holds and that is not part of the observed state."""

    slot: int
    kind: abi.Type  # the type of the message that puts it
    id: int  # of the server, table or service; of the listener's service
    port: Port | None = None


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that one worker holds, by id."""

    slot: int
    servers: Mapping[int, ServerSpec]
    tables: Mapping[int, codec.TableHeld]
    services: Mapping[int, codec.ServiceHeld]
    listens: frozenset[codec.ListenHeld]


def keys(records: Iterable[bytes]) -> frozenset[bytes]:
    """What a dump says, without the sequence numbers: equal for equal holdings, whatever their order."""
    return frozenset([record[:4] + record[8:] for record in records])


def decode(slot: int, dump: Iterable[bytes], cache: Cache) -> Holdings:
    """Read one worker's ``keys``; ``cache`` remembers records that were read before."""
    servers: dict[int, ServerSpec] = {}
    tables: dict[int, codec.TableHeld] = {}
    services: dict[int, codec.ServiceHeld] = {}
    listens: set[codec.ListenHeld] = set()
    for key in dump:
        held = cache.get(key)
        if held is None:
            kind = abi.Type(int.from_bytes(key[:2], sys.byteorder))
            held = cache[key] = _DECODERS[kind](key[:4] + b"\0\0\0\0" + key[4:])
        match held:
            case codec.TableHeld():
                tables[held.id] = held
            case codec.ServiceHeld():
                services[held.id] = held
            case codec.ListenHeld():
                listens.add(held)
            case (number, spec):
                servers[number] = spec
    return Holdings(slot, servers, tables, services, frozenset(listens))


def adopt(registry: Registry, holdings: Holdings) -> bool:
    """Take the names and ids of a running worker over; False when they contradict what another one said."""
    agrees = [registry.server_ids.adopt(spec.key, number) for number, spec in holdings.servers.items()]
    agrees += [registry.table_ids.adopt(held.digest, number) for number, held in holdings.tables.items()]
    agrees += [registry.service_ids.adopt(held.spec.name, number) for number, held in holdings.services.items()]
    return all(agrees)


def remember(registry: Registry, holdings: Holdings) -> None:
    """Note who had which id, for the flows of a worker that takes no new ones."""
    for number, spec in holdings.servers.items():
        registry.server_ids.remember(spec.key, number)
    for number, held in holdings.services.items():
        registry.service_ids.remember(held.spec.name, number)


def common(registry: Registry, workers: Sequence[Holdings]) -> ForwardingState:
    """The state that all workers have in common."""
    first, others = workers[0], workers[1:]
    servers = {}
    for key, number in registry.server_ids.items():
        server = first.servers.get(number)
        if server is not None and server.key == key and all(it.servers.get(number) == server for it in others):
            servers[key] = server
    tables: dict[str, TableSpec | None] = {}
    for digest, number in registry.table_ids.items():
        table = first.tables.get(number)
        if table is None or table.digest != digest or any(it.tables.get(number) != table for it in others):
            continue
        if registry.contents.setdefault(digest, table.content) == table.content:
            known = registry.tables.get(digest)
            tables[digest] = known.spec if known else None
    services = {}
    for name, number in registry.service_ids.items():
        service = first.services.get(number)
        if service is None or service.spec.name != name or any(it.services.get(number) != service for it in others):
            continue
        names = registry.table_ids.name(service.table) if service.table else None
        if names is None or registry.table_ids.get(names) == service.table:
            services[name] = _spec(registry, service, names)
    listens = first.listens.intersection(*(it.listens for it in others))
    return ForwardingState(servers, tables, services, frozenset(_listeners(registry, listens, services)))


def strays(registry: Registry, state: ForwardingState, workers: Iterable[Holdings]) -> frozenset[Stray]:
    """What some workers hold beyond the state they have in common."""
    servers = {registry.server_ids.get(key) for key in state.servers}
    tables = {registry.table_ids.get(digest) for digest in state.tables}
    services = {registry.service_ids.get(name) for name in state.services}
    ports = {
        codec.ListenHeld(number, port)
        for it in state.listeners
        if (number := registry.service_ids.get(it.service)) is not None
        for port in ports_of(it)
    }
    found: set[Stray] = set()
    for worker in workers:
        slot = worker.slot
        found.update(Stray(slot, abi.Type.SERVER_PUT, number) for number in worker.servers.keys() - servers)
        found.update(Stray(slot, abi.Type.TABLE_PUT, number) for number in worker.tables.keys() - tables)
        found.update(Stray(slot, abi.Type.SERVICE_PUT, number) for number in worker.services.keys() - services)
        found.update(Stray(slot, abi.Type.LISTEN_PUT, it.service, it.port) for it in worker.listens - ports)
    return frozenset(found)


def _spec(registry: Registry, held: codec.ServiceHeld, digest: str | None) -> ServiceSpec:
    """A worker does not know all of a ServiceSpec: what was sent stands for what comes back unchanged."""
    sent = registry.services.get(held.spec.name)
    return replace(sent.spec if sent and sent.dumped == held.spec else held.spec, table=digest)


def _listeners(
    registry: Registry, listens: Iterable[codec.ListenHeld], services: Mapping[str, ServiceSpec]
) -> Iterator[Listener]:
    """Open ports as Listeners: those that were opened, and ranges of the others (adopted from running workers)."""
    names = {registry.service_ids.get(name): name for name in services}
    ports = {(names[it.service], it.port) for it in listens if it.service in names}
    for listener in registry.listeners:
        own = {(listener.service, port) for port in ports_of(listener)}
        if own <= ports:
            ports -= own
            yield listener
    yield from group(ports)


def group(ports: Iterable[tuple[str, Port]]) -> Iterator[Listener]:
    """Single ports as Listeners, neighbours joined."""
    last: Listener | None = None
    for service, port in sorted(ports, key=_order):
        address, number = port.endpoint.address, port.endpoint.port
        if last is not None:
            joined = Listener(service, port.protocol, Listen(address, last.listen.first, number))
            if joined == replace(last, listen=replace(last.listen, last=last.listen.last + 1)):
                last = joined
                continue
            yield last
        last = Listener(service, port.protocol, Listen(address, number, number))
    if last is not None:
        yield last


def _order(item: tuple[str, Port]) -> tuple[str, Protocol, int, int, int]:
    """Addresses of different families do not compare, therefore the version comes first."""
    service, port = item
    address = port.endpoint.address
    return service, port.protocol, address.version, int(address), port.endpoint.port
