# SPDX-License-Identifier: Apache-2.0
"""What is held, as others see it: the same objects for as long as nothing has touched them.

Invariant: every Op that may have changed what is held is told here, done or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.model.shared import Shared, shared
from fairlead.model.state import (
    CloseListener,
    DeleteServer,
    DeleteService,
    DeleteTable,
    ForwardingState,
    Listener,
    Op,
    OpenListener,
    PutServer,
    PutService,
    PutTable,
    TableSpec,
)

T = TypeVar("T")


class Shown:
    """The state that was shown last, and what has been touched since."""

    def __init__(self) -> None:
        self._state = ForwardingState(Shared(), Shared(), Shared(), frozenset())
        self._servers: set[str] = set()
        self._tables: set[str] = set()
        self._services: set[str] = set()
        self._moved = False  # whether a listener was

    def touch(self, ops: Iterable[Op]) -> None:
        """These Ops are about to be done."""
        for op in ops:
            match op:
                case PutServer():
                    self._servers.add(op.spec.key)
                case DeleteServer(key):
                    self._servers.add(key)
                case PutTable(digest) | DeleteTable(digest):
                    self._tables.add(digest)
                case PutService(spec):
                    self._services.add(spec.name)
                case DeleteService(name):
                    self._services.add(name)
                case OpenListener() | CloseListener():
                    self._moved = True

    def touch_all(self, held: Holdings) -> None:
        """Everything was taken over."""
        self._servers |= held.servers.keys()
        self._tables |= held.tables.keys()
        self._services |= held.services.keys()
        self._moved = True

    def present(self, held: Holdings, recipes: Mapping[str, TableSpec]) -> ForwardingState:
        """What is held now; ``recipes`` of tables, as far as they are known."""
        was = self._state
        if self._servers or self._tables or self._services or self._moved:
            servers, tables, services = held.servers, held.tables, held.services
            self._state = ForwardingState(
                _renewed(was.servers, {it: servers[it].spec for it in self._servers if it in servers}, self._servers),
                _renewed(was.tables, {it: recipes.get(it) for it in self._tables if it in tables}, self._tables),
                _renewed(
                    was.services, {it: services[it].spec for it in self._services if it in services}, self._services
                ),
                frozenset(held.listeners) if self._moved else was.listeners,
            )
            self._servers, self._tables, self._services, self._moved = set(), set(), set(), False
        return self._state


def without(state: ForwardingState, held: Holdings, gone: AbstractSet[object]) -> ForwardingState:
    """The state but for some nouns.

    A server is known by its key, a table by its digest, a service by ``("service", name)``, a listener by itself.
    """
    if not gone:
        return state
    services = [it[1] for it in gone if isinstance(it, tuple)]
    names = [it for it in gone if isinstance(it, str)]
    return ForwardingState(
        shared(state.servers).changed({}, [key for key in names if key in held.servers]),
        shared(state.tables).changed({}, [digest for digest in names if digest in held.tables]),
        shared(state.services).changed({}, [name for name in services if name in held.services]),
        state.listeners - {it for it in gone if isinstance(it, Listener)},
    )


def _renewed(was: Mapping[str, T], present: Mapping[str, T], names: AbstractSet[str]) -> Shared[str, T]:
    """``was`` with what these names stand for at present."""
    return shared(was).changed(present, names - present.keys())
