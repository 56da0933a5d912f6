# SPDX-License-Identifier: Apache-2.0
"""Two data planes behind one: services of ``forwarding: proxy`` live in user space, the others in the kernel.

Invariants: a service and its listeners live in the plane of its forwarding; when that changes, the new plane takes
packets before the old one lets go. A server lives in every plane that has a table with it. What no plane needs yet
(a server that no table names, a table that no service names) is remembered here and handed over when it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import TypeVar

from fairlead.dataplane.base import Counters, DataPlane, Explanation, FlowFilter
from fairlead.dataplane.plane import Plane
from fairlead.errors import DataPlaneError
from fairlead.model.health import Way
from fairlead.model.net import FlowQuestion
from fairlead.model.service import Forwarding
from fairlead.model.shared import Shared, differing, shared
from fairlead.model.state import (
    CloseListener,
    DeleteServer,
    DeleteService,
    DeleteTable,
    ForwardingState,
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
V = TypeVar("V")


def plane_of(forwarding: Forwarding) -> str:
    """Which plane carries a service."""
    return PROXY if forwarding is Forwarding.PROXY else PACKETS


class CombinedDataPlane:
    """One DataPlane over two.

    Args:
        proxy: Carries services of ``forwarding: proxy``.
        packets: Carries all others; it does nothing while there are none.
    """

    def __init__(self, proxy: DataPlane, packets: DataPlane) -> None:
        self._planes = {PROXY: Plane(proxy), PACKETS: Plane(packets)}
        self._servers: dict[str, ServerSpec] = {}  # as last put
        self._tables: dict[str, TableSpec] = {}
        self._waiting_servers: set[str] = set()  # that no plane has
        self._waiting_tables: set[str] = set()
        self._showed_servers: set[str] = set()  # those that waited when last asked
        self._showed_tables: set[str] = set()
        self._state = ForwardingState(Shared(), Shared(), Shared(), frozenset())  # as last shown

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

    async def look(self) -> None:
        """At both."""
        for it in self._planes.values():
            await it.plane.look()

    async def observe(self, *, thorough: bool = True) -> ObservedState:
        """Both together. What they disagree about is left out, so that it is put again."""
        before = {name: it.seen for name, it in self._planes.items()}
        for it in self._planes.values():
            if thorough or it.told:
                it.saw(await it.plane.observe(thorough=thorough))
        found = {name: it.seen for name, it in self._planes.items()}
        proxy, packets = found[PROXY], found[PACKETS]
        waiting = {key for key in self._waiting_servers if key not in proxy.servers and key not in packets.servers}
        servers = differing(before[PROXY].servers, proxy.servers) | differing(before[PACKETS].servers, packets.servers)
        servers |= self._waiting_servers | self._showed_servers
        self._waiting_servers, self._showed_servers = waiting, set(waiting)
        unused = {it for it in self._waiting_tables if it not in proxy.tables and it not in packets.tables}
        tables = differing(before[PROXY].tables, proxy.tables) | differing(before[PACKETS].tables, packets.tables)
        tables |= self._waiting_tables | self._showed_tables
        self._waiting_tables, self._showed_tables = unused, set(unused)
        services = differing(before[PROXY].services, proxy.services)
        services |= differing(before[PACKETS].services, packets.services)
        if not (waiting or unused or proxy.servers or proxy.tables or proxy.services or proxy.listeners):
            self._state = packets  # nothing is to be joined
            return packets
        last, listeners = self._state, self._state.listeners
        if (proxy.listeners, packets.listeners) != (before[PROXY].listeners, before[PACKETS].listeners):
            listeners = proxy.listeners | packets.listeners
        self._state = ForwardingState(
            _merged(last.servers, {key: self._server(key) for key in servers}),
            _merged(last.tables, {digest: self._table(digest) for digest in tables}),
            _merged(last.services, {name: self._service(name) for name in services}),
            listeners,
        )
        return self._state

    def _server(self, key: str) -> tuple[ServerSpec, ...]:
        held = [it.seen.servers[key] for it in self._planes.values() if key in it.seen.servers]
        if not held:
            return (self._servers[key],) if key in self._waiting_servers else ()
        return (held[0],) if all(it == held[0] for it in held) else ()

    def _table(self, digest: str) -> tuple[TableSpec | None, ...]:
        held = [it.seen.tables[digest] for it in self._planes.values() if digest in it.seen.tables]
        if not held:
            return (self._tables[digest],) if digest in self._waiting_tables else ()
        return (held[-1],)

    def _service(self, name: str) -> tuple[ServiceSpec, ...]:
        held = [it.seen.services[name] for it in self._planes.values() if name in it.seen.services]
        return (held[0],) if len(held) == 1 else ()

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

    async def _carry_out(self, plan: Plan, part: Callable[[Plane], list[Op]]) -> DataPlaneError | None:
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
        user = self._users(plan)
        for kind, run in groupby(plan.ops, key=type):
            if kind is PutServer:
                self._put_servers({op.spec.key: op.spec for op in run if isinstance(op, PutServer)})
            else:
                self._divide_run(run, user)

    def _divide_run(self, run: Iterable[Op], user: Mapping[str | None, str]) -> None:
        """Ops of one kind."""
        for op in run:
            match op:
                case DeleteServer(key):
                    for digest in self._waiting_tables:
                        if any(member.key == key for member in self._tables[digest].members):
                            raise DataPlaneError(f"{describe(op)}: table {digest} names it", op)
                    self._servers.pop(key, None)
                    self._waiting_servers.discard(key)
                    self._to_holders(op)
                case PutTable(digest, table):
                    for member in table.members:
                        if member.key not in self._servers and self._known(member.key) is None:
                            raise DataPlaneError(f"{describe(op)}: no server {member.key}", op)
                    self._tables[digest] = table
                    if digest in user:
                        self._give_table(self._planes[user[digest]], digest)
                    else:
                        self._waiting_tables.add(digest)
                case DeleteTable(digest):
                    self._tables.pop(digest, None)
                    self._waiting_tables.discard(digest)
                    self._to_holders(op)
                case PutService(spec):
                    target = plane_of(spec.forwarding)
                    it = self._planes[target]
                    if spec.table is not None and spec.table not in it.tables:
                        if spec.table not in self._tables:
                            raise DataPlaneError(f"{describe(op)}: no table {spec.table}", op)
                        self._give_table(it, spec.table)
                    it.give(op)
                    self._leave(spec.name, target)
                case DeleteService():
                    self._to_holders(op)
                case OpenListener(listener):
                    target = PACKETS if listener.service in self._planes[PACKETS].services else PROXY
                    self._planes[target].give(op)
                case CloseListener():
                    self._to_holders(op)

    def _users(self, plan: Plan) -> dict[str | None, str]:
        """By digest: which plane has, or will have, a service with the table."""
        user = {op.spec.table: plane_of(op.spec.forwarding) for op in plan.ops if isinstance(op, PutService)}
        if any(isinstance(op, PutTable) and op.digest not in user for op in plan.ops):
            for name, it in self._planes.items():
                user.update({spec.table: name for spec in it.services.values() if spec.table not in user})
        return user

    def _to_holders(self, op: DeleteServer | DeleteTable | DeleteService | CloseListener) -> None:
        """Give an Op to the planes that hold what it is about."""
        for it in self._planes.values():
            if it.holds(op):
                it.give(op)

    def _put_servers(self, specs: Mapping[str, ServerSpec]) -> None:
        """At once, for there may be a hundred thousand."""
        self._servers.update(specs)
        waiting = set(specs)
        for it in self._planes.values():
            lacking = it.servers.lacks(specs)
            if len(lacking) < len(specs):
                it.give_servers([spec for key, spec in specs.items() if key not in lacking])
            waiting &= lacking
        self._waiting_servers |= waiting

    def _give_table(self, it: Plane, digest: str) -> None:
        """A table, and before it the servers that it names."""
        table = self._tables[digest]
        lacking = it.servers.lacks([member.key for member in table.members])
        if lacking:
            keys = [member.key for member in table.members if member.key in lacking]
            found = [self._servers.get(key) or self._known(key) for key in keys]
            it.give_servers([spec for spec in found if spec is not None])
        it.give(PutTable(digest, table))

    def _known(self, key: str) -> ServerSpec | None:
        """A server as it was put, or as another plane holds it."""
        if key in self._servers:
            return self._servers[key]
        return next((spec for it in self._planes.values() if (spec := it.servers.get(key)) is not None), None)

    def _leave(self, name: str, target: str) -> None:
        """A service that another plane holds goes there: its listeners open here first, then close there."""
        for other, it in self._planes.items():
            if other == target or name not in it.services:
                continue
            listeners = [held for held in it.listeners if held.service == name]
            for held in listeners:
                self._planes[target].give(OpenListener(held))
            it.last += [*(CloseListener(held) for held in listeners), DeleteService(name)]
            it.services.drop(name)
            it.opened.update(dict.fromkeys(listeners, False))
            it.told = True

    def trouble(self) -> str | None:
        """Of either."""
        return next((why for it in self._planes.values() if (why := it.plane.trouble()) is not None), None)

    async def counters(self, *, brief: bool = False) -> Counters:
        """Both together."""
        proxy = await self._planes[PROXY].plane.counters(brief=brief)
        packets = await self._planes[PACKETS].plane.counters(brief=brief)
        if not proxy.services and not proxy.servers:  # 100,000 rows are not copied every second
            return Counters(packets.servers, packets.services, proxy.workers, packets.packets)
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


def _merged(last: Mapping[str, V], found: Mapping[str, tuple[V, ...]]) -> Shared[str, V]:
    """``last`` with what was found under some names: one value, or none."""
    puts = {name: values[0] for name, values in found.items() if values}
    return shared(last).changed(puts, [name for name, values in found.items() if not values])


def _translated(error: DataPlaneError, plan: Plan) -> DataPlaneError:
    """The error, naming an Op of the plan as it was given."""
    if error.op is None or error.op in plan.ops:
        return error
    return DataPlaneError(str(error), plan.ops[-1])
