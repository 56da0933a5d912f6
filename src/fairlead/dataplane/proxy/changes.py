# SPDX-License-Identifier: Apache-2.0
"""From Ops to messages for workers, keeping the registry and the listening sockets in step.

Invariants: what is put enters the registry before it is sent, what is deleted leaves it after all workers did it;
so a worker that starts at any moment can be fed from the registry.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fairlead.dataplane.proxy import abi, codec
from fairlead.dataplane.proxy.control import Message
from fairlead.dataplane.proxy.listeners import MAX_RANGE, Port, Sockets, ports_of
from fairlead.dataplane.proxy.observe import Stray
from fairlead.dataplane.proxy.registry import Ids, Registry, Service, Table
from fairlead.errors import DataPlaneError, FairleadError
from fairlead.model.state import (
    CloseListener,
    DeleteServer,
    DeleteService,
    DeleteTable,
    Listener,
    Op,
    OpenListener,
    Plan,
    PutServer,
    PutService,
    PutTable,
    ServerSpec,
    ServiceMode,
    ServiceSpec,
    TableSpec,
)
from fairlead.policy.plan import describe

_Name = tuple[abi.Type, str]


def _nothing(_slot: int = 0) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Change:
    """One step on every worker.

    Attributes:
        what: It in words.
        messages: What to send to the worker of a slot.
        finish: To be called when every worker did it.
        refused: To be called with the slot of a worker that refused.
        deletes: ENOENT means that it is done.
    """

    what: str
    messages: Callable[[int], list[Message]]
    finish: Callable[[], None] = _nothing
    refused: Callable[[int], None] = _nothing
    deletes: bool = False


class Changes:
    """Turns Ops into Changes.

    Args:
        registry: What the workers hold.
        sockets: The listening sockets.
        slots_in_use: The slots of all live workers.
        recycled: Called with "server" or "service" and an id that another one had before.
    """

    def __init__(
        self,
        registry: Registry,
        sockets: Sockets,
        slots_in_use: Callable[[], tuple[int, ...]],
        recycled: Callable[[str, int], None],
    ) -> None:
        self._slots: dict[str, array[int]] = {}  # filled tables of the present plan
        self._registry = registry
        self._sockets = sockets
        self._slots_in_use = slots_in_use
        self._recycled = recycled
        self._asked: set[_Name] = set()
        self._opening: set[Port] = set()

    def is_filled(self, digest: str) -> bool:
        """Whether the table need not be filled again."""
        known = self._registry.tables.get(digest)
        return known is not None and known.body is not None

    def begin(self, plan: Plan, slots: dict[str, array[int]]) -> None:
        """Look ahead: what a plan closes only to open it again keeps its sockets, and the clients in their queues.

        ``slots`` are those of the plan's tables that were not filled before.
        """
        self._slots = slots
        for op in plan.ops:
            match op:
                case OpenListener(listener):
                    self._opening.update(ports_of(listener))
                    self._asked.add((abi.Type.LISTEN_PUT, listener.service))
                case PutServer(spec):
                    self._asked.add((abi.Type.SERVER_PUT, spec.key))
                case PutTable(digest):
                    self._asked.add((abi.Type.TABLE_PUT, digest))
                case PutService(spec):
                    self._asked.add((abi.Type.SERVICE_PUT, spec.name))

    def end(self) -> None:
        """The plan is done, or cut."""
        self._slots = {}
        self._opening.clear()
        self._sockets.release_unless(self._registry.ports)

    def asked(self, stray: Stray) -> bool:
        """Whether a plan since the last ``observed`` asked for it."""
        return (stray.kind, self._name(stray)) in self._asked

    def observed(self) -> None:
        """What was asked for so far has been looked at."""
        self._asked.clear()

    def forget(self, stray: Stray) -> None:
        """It was removed from its worker: no new worker gets it."""
        registry, name = self._registry, self._name(stray)
        match stray.kind:
            case abi.Type.SERVER_PUT if registry.server_ids.get(name) == stray.id:
                registry.forget_server(name)
            case abi.Type.TABLE_PUT if registry.table_ids.get(name) == stray.id:
                registry.forget_table(name)
            case abi.Type.SERVICE_PUT if registry.service_ids.get(name) == stray.id:
                registry.forget_service(name)
            case abi.Type.LISTEN_PUT if stray.port is not None and registry.ports.get(stray.port) == name:
                registry.forget_port(stray.port)
                self._sockets.release(stray.port)

    def prepare(self, op: Op) -> Change:
        """The messages of one Op; the registry holds what is put from now on.

        Raises:
            DataPlaneError: It cannot be done: something it names is missing or in use, or the host refuses.
        """
        self._registry.version += 1
        match op:
            case PutServer(spec):
                return self._put_server(spec, describe(op))
            case DeleteServer(key):
                return self._delete_server(key, describe(op))
            case PutTable(digest, table):
                return self._put_table(digest, table, describe(op))
            case DeleteTable(digest):
                return self._delete_table(digest, describe(op))
            case PutService(service):
                return self._put_service(service, describe(op))
            case DeleteService(name):
                return self._delete_service(name, describe(op))
            case OpenListener(listener):
                return self._open(listener, describe(op))
            case CloseListener(listener):
                return self._close(listener, describe(op))

    def everything(self, slot: int, refuse: Callable[[str], None]) -> Iterator[Message]:
        """All a new worker needs, in order; ``refuse`` is told what it cannot have.

        Tables that were adopted from running workers have no slots here; they, and what needs them, come with the
        next plan, because an observation will miss them.
        """
        registry = self._registry
        for key, server in registry.servers.items():
            yield Message(abi.Type.SERVER_PUT, codec.encode_server(registry.server_ids.claim(key), server))
        tables = {digest for digest, table in registry.tables.items() if table.body is not None}
        for digest in tables:
            yield Message(abi.Type.TABLE_PUT, registry.tables[digest].body or b"")
        services = {name for name, it in registry.services.items() if it.spec.table is None or it.spec.table in tables}
        for name in services:
            yield Message(abi.Type.SERVICE_PUT, self._service_body(registry.services[name].spec))
        for port, name in registry.ports.items():
            if name in services:
                try:
                    self._sockets.ensure(port, (slot,))
                except DataPlaneError as error:
                    refuse(str(error))
                else:
                    yield self._listen(port, name, slot)

    def refused(self, message: Message, slot: int) -> None:
        """A new worker refused one of the messages of ``everything``."""
        if message.type is abi.Type.LISTEN_PUT:
            self._refused([codec.decode_listen(bytes(abi.HEADER.size) + message.body).port], slot)

    def _name(self, stray: Stray) -> str:
        ids = {
            abi.Type.SERVER_PUT: self._registry.server_ids,
            abi.Type.TABLE_PUT: self._registry.table_ids,
        }
        return ids.get(stray.kind, self._registry.service_ids).name(stray.id)

    def _put_server(self, spec: ServerSpec, what: str) -> Change:
        with _claimed(self._registry.server_ids, spec.key, lambda n: self._recycled("server", n)) as number:
            message = Message(abi.Type.SERVER_PUT, codec.encode_server(number, spec))
        self._registry.servers[spec.key] = spec
        return Change(what, lambda _: [message])

    def _delete_server(self, key: str, what: str) -> Change:
        if count := self._registry.named[key]:
            raise DataPlaneError(f"{what}: {count} table(s) name it")
        finish = lambda: self._registry.forget_server(key)  # noqa: E731
        return self._delete(what, abi.Type.SERVER_DEL, self._registry.server_ids.get(key), finish)

    def _put_table(self, digest: str, spec: TableSpec, what: str) -> Change:
        registry = self._registry
        known = registry.tables.get(digest)
        body = known.body if known else None
        if body is None:
            if (slots := self._slots.get(digest)) is None:
                raise DataPlaneError(f"{what}: it was deleted while the plan was prepared; plan again")
            ids = [(member.key, registry.server_ids.get(member.key)) for member in spec.members]
            if missing := [key for key, number in ids if number is None]:
                raise DataPlaneError(f"{what}: there is no server {missing[0]}")
            members = [number for _, number in ids if number is not None]
            with _claimed(registry.table_ids, digest) as number:
                body = codec.encode_table(number, digest, spec, slots, members)
        registry.put_table(digest, Table(spec, body))
        registry.contents.pop(digest, None)
        message = Message(abi.Type.TABLE_PUT, body)
        return Change(what, lambda _: [message])

    def _delete_table(self, digest: str, what: str) -> Change:
        users = [name for name, service in self._registry.services.items() if service.spec.table == digest]
        if users:
            raise DataPlaneError(f"{what}: service {users[0]} names it")
        finish = lambda: self._registry.forget_table(digest)  # noqa: E731
        return self._delete(what, abi.Type.TABLE_DEL, self._registry.table_ids.get(digest), finish)

    def _put_service(self, spec: ServiceSpec, what: str) -> Change:
        registry = self._registry
        if (spec.table is not None) is not (spec.mode is ServiceMode.FORWARD):
            raise DataPlaneError(f"{what}: a service has a table exactly when it forwards")
        if spec.table is not None and registry.table_ids.get(spec.table) is None:
            raise DataPlaneError(f"{what}: there is no table {spec.table[:8]}")
        with _claimed(registry.service_ids, spec.name, lambda n: self._recycled("service", n)):
            body = self._service_body(spec)
        dumped = codec.decode_service(bytes(abi.HEADER.size) + body).spec
        registry.services[spec.name] = Service(spec, dumped)
        return Change(what, lambda _: [Message(abi.Type.SERVICE_PUT, body)])

    def _delete_service(self, name: str, what: str) -> Change:
        open_at = [port for port, service in self._registry.ports.items() if service == name]
        if open_at:
            raise DataPlaneError(f"{what}: it has a listener at {open_at[0]}")
        finish = lambda: self._registry.forget_service(name)  # noqa: E731
        return self._delete(what, abi.Type.SERVICE_DEL, self._registry.service_ids.get(name), finish)

    def _delete(self, what: str, kind: abi.Type, number: int | None, finish: Callable[[], None]) -> Change:
        messages = [] if number is None else [Message(kind, codec.encode_id(number))]
        return Change(what, lambda _: messages, finish, deletes=True)

    def _open(self, listener: Listener, what: str) -> Change:
        registry, listen = self._registry, listener.listen
        if registry.service_ids.get(listener.service) is None:
            raise DataPlaneError(f"{what}: there is no service {listener.service}")
        if (count := listen.last - listen.first + 1) > MAX_RANGE:
            raise DataPlaneError(
                f"{what}: {count} ports; forwarding proxy opens a socket for each, at most {MAX_RANGE} in a listener"
            )
        ports = list(ports_of(listener))
        for port in ports:
            if (owner := registry.ports.get(port, listener.service)) != listener.service:
                raise DataPlaneError(f"{what}: service {owner} listens at {port}")
        try:
            for port in ports:
                self._sockets.ensure(port, self._slots_in_use())
        except DataPlaneError:
            self._sockets.release_unless(registry.ports.keys() | self._opening)
            raise
        registry.ports.update(dict.fromkeys(ports, listener.service))
        registry.listeners.add(listener)
        name = listener.service
        return Change(
            what,
            lambda slot: [self._listen(port, name, slot) for port in ports],
            refused=lambda slot: self._refused(ports, slot),
        )

    def _close(self, listener: Listener, what: str) -> Change:
        registry = self._registry
        registry.listeners.discard(listener)
        others = {port for other in registry.listeners if other.service == listener.service for port in ports_of(other)}
        closing = [
            port for port in ports_of(listener) if registry.ports.get(port) == listener.service and port not in others
        ]
        number = registry.service_ids.get(listener.service)
        if number is None:
            return Change(what, lambda _: [])
        messages = [Message(abi.Type.LISTEN_DEL, codec.encode_listen(number, port)) for port in closing]
        for port in closing:
            registry.forget_port(port)
            # Before the workers close theirs, which accept what is queued first: nothing can be queued behind that.
            if port not in self._opening:
                self._sockets.release(port)
        return Change(what, lambda _: messages, deletes=True)

    def _listen(self, port: Port, service: str, slot: int) -> Message:
        number = self._registry.service_ids.get(service) or 0
        fds = (self._sockets.fileno(port, slot),)
        return Message(abi.Type.LISTEN_PUT, codec.encode_listen(number, port), fds)

    def _refused(self, ports: list[Port], slot: int) -> None:
        """A socket that nobody accepts on would swallow its share of the connections."""
        for port in ports:
            self._sockets.release_slot(port, slot)
            if not self._sockets.holds(port):
                self._registry.forget_port(port)

    def _service_body(self, spec: ServiceSpec) -> bytes:
        ids = self._registry
        table = ids.table_ids.get(spec.table) if spec.table else 0
        number = ids.service_ids.claim(spec.name)
        return codec.encode_service(number, table or 0, spec)


@contextlib.contextmanager
def _claimed(ids: Ids, name: str, recycled: Callable[[int], None] | None = None) -> Iterator[int]:
    """An id for ``name``, given back when encoding fails and it had none before."""
    had = ids.get(name) is not None
    number = ids.claim(name, recycled)
    try:
        yield number
    except FairleadError:
        if not had:
            ids.release(name)
        raise


def adopted(service: ServiceSpec, digest: str | None) -> Service:
    """A service that a running worker holds."""
    return Service(replace(service, table=digest), service)
