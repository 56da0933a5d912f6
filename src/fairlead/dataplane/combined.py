# SPDX-License-Identifier: Apache-2.0
"""Two data planes behind one: services of ``forwarding: proxy`` live in user space, the others in the kernel.

Invariants: a service and its listeners live in the plane of its forwarding; when that changes, the new plane takes
packets before the old one lets go. A server lives in every plane that has a table with it. What no plane needs yet
(a server that no table names, a table that no service names) is remembered here and handed over when it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fairlead.dataplane.base import Counters, DataPlane, Explanation, FlowFilter
from fairlead.errors import DataPlaneError
from fairlead.model.health import Way
from fairlead.model.net import FlowQuestion
from fairlead.model.service import Forwarding
from fairlead.model.state import (
    CloseListener,
    DeleteServer,
    DeleteService,
    DeleteTable,
    ForwardingState,
    Listener,
    ObservedState,
    Op,
    OpenListener,
    Plan,
    PutServer,
    PutService,
    PutTable,
    ServerSpec,
    ServiceSpec,
    TableSpec,
)
from fairlead.model.views import FlowPage
from fairlead.model.vip import Vip
from fairlead.policy.plan import describe

PROXY, PACKETS = "proxy", "packets"


def plane_of(forwarding: Forwarding) -> str:
    """Which plane carries a service."""
    return PROXY if forwarding is Forwarding.PROXY else PACKETS


@dataclass(slots=True)
class _Plane:
    """One plane, what it holds once ``ops`` are done, and the Ops that it is about to get."""

    plane: DataPlane
    ops: list[Op] = field(default_factory=list)
    last: list[Op] = field(default_factory=list)  # from the first on by which something leaves this plane
    servers: dict[str, ServerSpec] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    services: dict[str, ServiceSpec] = field(default_factory=dict)
    listeners: set[Listener] = field(default_factory=set)

    def saw(self, state: ForwardingState) -> None:
        """It was asked what it holds."""
        self.servers, self.tables = dict(state.servers), set(state.tables)
        self.services, self.listeners = dict(state.services), set(state.listeners)

    def give(self, op: Op) -> None:
        """Let it do this, too."""
        (self.last or self.ops).append(op)
        match op:
            case PutServer(spec):
                self.servers[spec.key] = spec
            case DeleteServer(key):
                self.servers.pop(key, None)
            case PutTable(digest, _):
                self.tables.add(digest)
            case DeleteTable(digest):
                self.tables.discard(digest)
            case PutService(spec):
                self.services[spec.name] = spec
            case DeleteService(name):
                self.services.pop(name, None)
            case OpenListener(listener):
                self.listeners.add(listener)
            case CloseListener(listener):
                self.listeners.discard(listener)


class CombinedDataPlane:
    """One DataPlane over two.

    Args:
        proxy: Carries services of ``forwarding: proxy``.
        packets: Carries all others; it does nothing while there are none.
    """

    def __init__(self, proxy: DataPlane, packets: DataPlane) -> None:
        self._planes = {PROXY: _Plane(proxy), PACKETS: _Plane(packets)}
        self._servers: dict[str, ServerSpec] = {}  # as last put
        self._tables: dict[str, TableSpec] = {}
        self._waiting_servers: set[str] = set()  # that no plane has
        self._waiting_tables: set[str] = set()

    def set_vips(self, vips: frozenset[Vip]) -> None:
        """Addresses that come and go."""
        for it in self._planes.values():
            it.plane.set_vips(vips)

    async def set_ways(self, ways: frozenset[Way]) -> None:
        """They are those of services in the kernel."""
        await self._planes[PACKETS].plane.set_ways(ways)

    def mark_of(self, way: Way) -> int:
        """By the packets' plane."""
        return self._planes[PACKETS].plane.mark_of(way)

    def packets_of(self, way: Way) -> int:
        """By the packets' plane."""
        return self._planes[PACKETS].plane.packets_of(way)

    async def start(self) -> None:
        """Start both; the packets' plane first, for what it adopted forwards already."""
        for name in (PACKETS, PROXY):
            await self._planes[name].plane.start()

    async def observe(self) -> ObservedState:
        """Both together. What they disagree about is left out, so that it is put again."""
        found = {name: await it.plane.observe() for name, it in self._planes.items()}
        for name, it in self._planes.items():
            it.saw(found[name])
        proxy, packets = found[PROXY], found[PACKETS]
        self._waiting_servers -= proxy.servers.keys() | packets.servers.keys()
        self._waiting_tables -= proxy.tables.keys() | packets.tables.keys()
        servers = {key: self._servers[key] for key in self._waiting_servers} | {**proxy.servers, **packets.servers}
        for key in proxy.servers.keys() & packets.servers.keys():
            if proxy.servers[key] != packets.servers[key]:
                del servers[key]
        both = proxy.services.keys() & packets.services.keys()
        services = {name: spec for name, spec in {**proxy.services, **packets.services}.items() if name not in both}
        tables: Mapping[str, TableSpec | None] = {
            **{digest: self._tables[digest] for digest in self._waiting_tables},
            **proxy.tables,
            **packets.tables,
        }
        return ForwardingState(servers, tables, services, proxy.listeners | packets.listeners)

    async def apply(self, plan: Plan) -> None:
        """Carry out a plan: each plane its part, in order.

        Raises:
            DataPlaneError: With the first Op that failed; the other plane has its part done all the same.
        """
        for it in self._planes.values():
            it.ops, it.last = [], []
        refused: DataPlaneError | None = None
        try:
            self._divide(plan)
        except DataPlaneError as error:
            refused = error
        failure = await self._carry_out(plan, lambda it: it.ops)
        if failure is None:
            # What leaves a plane does so once the other one has taken over.
            failure = await self._carry_out(plan, lambda it: it.last)
        if failure is not None or refused is not None:
            raise failure or refused  # type: ignore[misc]

    async def _carry_out(self, plan: Plan, part: Callable[[_Plane], list[Op]]) -> DataPlaneError | None:
        """Let each plane do a part of its Ops; what failed first."""
        failure: DataPlaneError | None = None
        for it in self._planes.values():
            if part(it):
                try:
                    await it.plane.apply(Plan(tuple(part(it))))
                except DataPlaneError as error:
                    failure = failure or _translated(error, plan)
        return failure

    def _divide(self, plan: Plan) -> None:
        """Fill the planes' Ops.

        Raises:
            DataPlaneError: An Op cannot be done; those before it are divided.
        """
        user = {op.spec.table: plane_of(op.spec.forwarding) for op in plan.ops if isinstance(op, PutService)}
        for name, it in self._planes.items():
            user.update({spec.table: name for spec in it.services.values() if spec.table not in user})
        for op in plan.ops:
            match op:
                case PutServer(spec):
                    self._put_server(op, spec)
                case DeleteServer(key):
                    for digest in self._waiting_tables:
                        if any(member.key == key for member in self._tables[digest].members):
                            raise DataPlaneError(f"{describe(op)}: table {digest} names it", op)
                    self._servers.pop(key, None)
                    self._waiting_servers.discard(key)
                    self._to_holders(op, key, "servers")
                case PutTable(digest, table):
                    for member in table.members:
                        if self._known(member.key) is None:
                            raise DataPlaneError(f"{describe(op)}: no server {member.key}", op)
                    self._tables[digest] = table
                    if digest in user:
                        self._give_table(self._planes[user[digest]], digest)
                    else:
                        self._waiting_tables.add(digest)
                case DeleteTable(digest):
                    self._tables.pop(digest, None)
                    self._waiting_tables.discard(digest)
                    self._to_holders(op, digest, "tables")
                case PutService(spec):
                    target = plane_of(spec.forwarding)
                    it = self._planes[target]
                    if spec.table is not None and spec.table not in it.tables:
                        if spec.table not in self._tables:
                            raise DataPlaneError(f"{describe(op)}: no table {spec.table}", op)
                        self._give_table(it, spec.table)
                    it.give(op)
                    self._leave(spec.name, target)
                case DeleteService(name):
                    self._to_holders(op, name, "services")
                case OpenListener(listener):
                    target = PACKETS if listener.service in self._planes[PACKETS].services else PROXY
                    self._planes[target].give(op)
                case CloseListener(listener):
                    self._to_holders(op, listener, "listeners")

    def _to_holders(self, op: Op, what: object, where: str) -> None:
        """Give an Op to the planes that hold what it is about."""
        for it in self._planes.values():
            if what in getattr(it, where):
                it.give(op)

    def _put_server(self, op: PutServer, spec: ServerSpec) -> None:
        self._servers[spec.key] = spec
        held = False
        for it in self._planes.values():
            if spec.key in it.servers:
                it.give(op)
                held = True
        if not held:
            self._waiting_servers.add(spec.key)

    def _give_table(self, it: _Plane, digest: str) -> None:
        """A table, and before it the servers that it names."""
        table = self._tables[digest]
        for member in table.members:
            if member.key not in it.servers and (spec := self._known(member.key)) is not None:
                it.give(PutServer(spec))
        it.give(PutTable(digest, table))

    def _known(self, key: str) -> ServerSpec | None:
        """A server as it was put, or as another plane holds it."""
        if key in self._servers:
            return self._servers[key]
        return next((it.servers[key] for it in self._planes.values() if key in it.servers), None)

    def _leave(self, name: str, target: str) -> None:
        """A service that another plane holds goes there: its listeners open here first, then close there."""
        for other, it in self._planes.items():
            if other == target or name not in it.services:
                continue
            listeners = [held for held in it.listeners if held.service == name]
            for held in listeners:
                self._planes[target].give(OpenListener(held))
            it.last += [*(CloseListener(held) for held in listeners), DeleteService(name)]
            del it.services[name]
            it.listeners -= set(listeners)

    def trouble(self) -> str | None:
        """Of either."""
        return next((why for it in self._planes.values() if (why := it.plane.trouble()) is not None), None)

    async def counters(self) -> Counters:
        """Both together."""
        proxy = await self._planes[PROXY].plane.counters()
        packets = await self._planes[PACKETS].plane.counters()
        servers = dict(proxy.servers)
        for key, row in packets.servers.items():
            servers[key] = row + servers[key] if key in servers else row
        return Counters(servers, {**proxy.services, **packets.services}, proxy.workers, packets.packets)

    async def flows(self, which: FlowFilter, cursor: str | None, limit: int) -> FlowPage:
        """Those of the proxy, then those of the kernel; the cursor is PLANE/CURSOR.

        Raises:
            DataPlaneError: The cursor is none of ours.
        """
        name, _, at = cursor.partition("/") if cursor else (PROXY, "", "")
        if name not in self._planes:
            raise DataPlaneError(f"{cursor!r} is not a cursor of a list of connections; start again without one")
        page = await self._planes[name].plane.flows(which, at or None, limit)
        if page.cursor is not None:
            return FlowPage(page.flows, f"{name}/{page.cursor}")
        if name == PACKETS:
            return page
        left = limit - len(page.flows)
        if not left:
            return FlowPage(page.flows, f"{PACKETS}/")
        rest = await self._planes[PACKETS].plane.flows(which, None, left)
        after = None if rest.cursor is None else f"{PACKETS}/{rest.cursor}"
        return FlowPage((*page.flows, *rest.flows), after)

    async def explain(self, question: FlowQuestion) -> Explanation | None:
        """The kernel sees packets first."""
        return await self._planes[PACKETS].plane.explain(question)

    async def stop(self, *, drain_s: float) -> None:
        """Both at once."""
        await asyncio.gather(*(it.plane.stop(drain_s=drain_s) for it in self._planes.values()))

    async def detach(self) -> None:
        """Both go on."""
        for it in self._planes.values():
            await it.plane.detach()


def _translated(error: DataPlaneError, plan: Plan) -> DataPlaneError:
    """The error, naming an Op of the plan as it was given."""
    if error.op is None or error.op in plan.ops:
        return error
    return DataPlaneError(str(error), plan.ops[-1])
