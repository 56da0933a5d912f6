# SPDX-License-Identifier: Apache-2.0
"""The difference between what a data plane should hold and what it holds, as ordered Ops.

Invariants, at every cut of a Plan, applied to a consistent state:

- nothing that is named is missing: a table's servers, a service's table, a listener's service;
- a server that takes no new flows any more changes (weight, ``RESET``) only after the services that stop using it,
  and one that begins to take them changes before, so that no new flow meets a server that resets;
- a listener that gives way to another one closes right before that one opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from fairlead.errors import ContractViolation
from fairlead.model.shared import differing
from fairlead.model.state import (
    CloseListener,
    DeleteServer,
    DeleteService,
    DeleteTable,
    DesiredState,
    FlowTreatment,
    ForwardingState,
    Listener,
    ObservedState,
    Op,
    OpenListener,
    Plan,
    PutServer,
    PutService,
    PutTable,
    ServiceMode,
    TableSpec,
)

T = TypeVar("T")

_NONE: frozenset[str] = frozenset()
_NOTHING = ForwardingState()
_FATES = {
    FlowTreatment.KEEP: "",
    FlowTreatment.RESET: ", resetting its flows",
    FlowTreatment.UNPIN: ", its UDP flows leave",
}


def plan(
    desired: DesiredState, observed: ObservedState, known: tuple[DesiredState, ObservedState] | None = None
) -> Plan:
    """The Ops that lead from ``observed`` to ``desired``; empty when nothing has to change.

    Tables are compared by digest alone, because a data plane may not be able to read recipes back.

    Args:
        desired: What should be held.
        observed: What is held.
        known: An earlier pair between which there was nothing to do: only what differs from it is looked at.
    """
    one, other = known or (_NOTHING, _NOTHING)
    servers = _unlike(desired.servers, observed.servers, one.servers, other.servers)
    services = _unlike(desired.services, observed.services, one.services, other.services)
    tables = _moved(desired.tables, observed.tables, one.tables, other.tables)
    wanted = desired.servers
    changed = [spec for key in sorted(servers) if (spec := wanted.get(key)) is not None]
    changing = frozenset(spec.key for spec in changed if spec.key in observed.servers) if observed.servers else _NONE
    late_keys = changing - _live_among(desired, changing)
    late = [spec for spec in changed if spec.key in late_keys]
    ops: list[Op] = [PutServer(spec) for spec in changed if spec.key not in late_keys]
    ops += (
        PutTable(it, _recipe(desired, it))
        for it in sorted(tables)
        if it in desired.tables and it not in observed.tables
    )
    ops += (PutService(desired.services[name]) for name in sorted(services) if name in desired.services)
    if desired.listeners is not observed.listeners and (
        known is None or (desired.listeners, observed.listeners) != (known[0].listeners, known[1].listeners)
    ):
        ops += _listener_ops(desired.listeners - observed.listeners, observed.listeners - desired.listeners)
    ops += (DeleteService(name) for name in sorted(services) if name not in desired.services)
    ops += (PutServer(spec) for spec in late)
    ops += (DeleteTable(it) for it in sorted(tables) if it in observed.tables and it not in desired.tables)
    if len(changed) < len(servers):
        ops += (DeleteServer(key) for key in sorted(servers) if key not in desired.servers)
    return Plan(tuple(ops))


def _moved(
    desired: Mapping[str, T], observed: Mapping[str, T], one: Mapping[str, T], other: Mapping[str, T]
) -> set[str]:
    """Names that may not stand for the same on both sides; ``one`` and ``other`` are known to be alike."""
    if not one:
        return differing(desired, observed)
    return differing(desired, one) | differing(observed, other)


def _unlike(
    desired: Mapping[str, T], observed: Mapping[str, T], one: Mapping[str, T], other: Mapping[str, T]
) -> set[str]:
    """Names that do not stand for the same on both sides."""
    moved = _moved(desired, observed, one, other)
    return {name for name in moved if desired.get(name) != observed.get(name)} if one else moved


def describe(op: Op) -> str:
    """One line about ``op`` for people."""
    match op:
        case PutServer(spec):
            fate = _FATES[spec.flows]
            limit = f", at most {spec.max_connections} connections" if spec.max_connections else ""
            return f"put server {spec.key}: {spec.endpoint}, weight {spec.weight}{limit}{fate}"
        case DeleteServer(key):
            return f"delete server {key}"
        case PutTable(digest, spec):
            members = f"{len(spec.live)} of {len(spec.members)} servers live"
            return f"put table {digest[:8]}: {spec.scheduler}, {spec.size} slots, {members}"
        case DeleteTable(digest):
            return f"delete table {digest[:8]}"
        case PutService(spec):
            how = f"forward by table {spec.table[:8]}" if spec.table is not None else spec.mode.name.lower()
            return f"put service {spec.name}: {how}"
        case DeleteService(name):
            return f"delete service {name}"
        case OpenListener(listener):
            return f"open {listener.listen}/{listener.protocol} for service {listener.service}"
        case CloseListener(listener):
            return f"close {listener.listen}/{listener.protocol} of service {listener.service}"


def apply_op(state: ForwardingState, op: Op) -> ForwardingState:
    """What a data plane that holds ``state`` holds after ``op``: the reference that every driver follows.

    Raises:
        ContractViolation: Where a data plane refuses: something named is missing, or is still in use.
    """
    match op:
        case PutServer(spec):
            return replace(state, servers={**state.servers, spec.key: spec})
        case DeleteServer(key):
            users = [digest for digest, table in state.tables.items() if table and key in _member_keys(table)]
            _demand(not users, op, lambda: f"table {users[0]} names it")
            return replace(state, servers=_without(state.servers, key))
        case PutTable(digest, spec):
            missing = sorted(_member_keys(spec) - state.servers.keys())
            _demand(not missing, op, lambda: f"no server {missing[0]}")
            return replace(state, tables={**state.tables, digest: spec})
        case DeleteTable(digest):
            named_by = [service.name for service in state.services.values() if service.table == digest]
            _demand(not named_by, op, lambda: f"service {named_by[0]} names it")
            return replace(state, tables=_without(state.tables, digest))
        case PutService(spec):
            _demand((spec.table is not None) is (spec.mode is ServiceMode.FORWARD), op, lambda: "table and mode differ")
            _demand(spec.table is None or spec.table in state.tables, op, lambda: f"no table {spec.table}")
            return replace(state, services={**state.services, spec.name: spec})
        case DeleteService(name):
            _demand(all(it.service != name for it in state.listeners), op, lambda: "it has a listener")
            return replace(state, services=_without(state.services, name))
        case OpenListener(listener):
            _demand(listener.service in state.services, op, lambda: f"no service {listener.service}")
            _demand(not any(_conflict(listener, held) for held in state.listeners), op, lambda: "in use")
            return replace(state, listeners=state.listeners | {listener})
        case CloseListener(listener):
            return replace(state, listeners=state.listeners - {listener})


def _listener_ops(opening: frozenset[Listener], closing: frozenset[Listener]) -> Iterator[Op]:
    waiting = sorted(closing, key=_listener_order)
    for listener in sorted(opening, key=_listener_order):
        for held in [it for it in waiting if _conflict(listener, it)]:
            waiting.remove(held)
            yield CloseListener(held)
        yield OpenListener(listener)
    yield from (CloseListener(held) for held in waiting)


def _conflict(one: Listener, other: Listener) -> bool:
    """Whether two different listeners want a port in common."""
    return (
        one != other
        and (one.protocol, one.listen.address) == (other.protocol, other.listen.address)
        and one.listen.first <= other.listen.last
        and other.listen.first <= one.listen.last
    )


def _listener_order(listener: Listener) -> tuple[str, str, int, int, int, int]:
    """Addresses of different families do not compare, therefore the version comes first."""
    listen = listener.listen
    return (listener.service, listener.protocol, listen.address.version, int(listen.address), listen.first, listen.last)


def _live_among(state: DesiredState, keys: frozenset[str]) -> frozenset[str]:
    """Those of the keys by which tables name servers that take new flows."""
    if not keys:
        return keys
    found = (table.live & keys for table in state.tables.values() if table and not keys.isdisjoint(table.live))
    return frozenset().union(*found)


def _member_keys(table: TableSpec) -> frozenset[str]:
    return frozenset(member.key for member in table.members)


def _recipe(desired: DesiredState, digest: str) -> TableSpec:
    spec = desired.tables[digest]
    if spec is None:
        raise ContractViolation(
            f"the desired state has no recipe for table {digest}; only observed tables may lack one"
        )
    return spec


def _without(mapping: Mapping[str, T], key: str) -> dict[str, T]:
    return {name: value for name, value in mapping.items() if name != key}


def _demand(holds: bool, op: Op, why: Callable[[], str]) -> None:
    if not holds:
        raise ContractViolation(f"{describe(op)}: {why()}")
