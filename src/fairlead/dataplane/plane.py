# SPDX-License-Identifier: Apache-2.0
"""One of two data planes, as the one over both sees it: what it holds, and will hold once it was told what is due."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fairlead.dataplane.base import DataPlane
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
    ServerSpec,
    ServiceSpec,
)

K = TypeVar("K")
V = TypeVar("V")


class Draft(Generic[K, V]):
    """Things of one kind: what a plane held when it was last asked, and what it is about to be told since."""

    def __init__(self) -> None:
        self._held: Mapping[K, V] = {}
        self._since: dict[K, V | None] = {}

    def saw(self, held: Mapping[K, V]) -> None:
        """It was asked what it holds."""
        self._held, self._since = held or {}, {}  # of nothing a dict says so faster

    def __contains__(self, key: object) -> bool:
        # A table that is held may have no recipe, therefore values that are held are not looked at.
        if key in self._since:
            return self._since[key] is not None
        return key in self._held

    def lacks(self, keys: Iterable[K]) -> set[K]:
        """Those of the keys that are not there; of many it is quicker than to ask one by one."""
        held, since = self._held, self._since
        return {key for key in keys if (since[key] is None if key in since else key not in held)}

    def get(self, key: K) -> V | None:
        """What is there."""
        return self._since[key] if key in self._since else self._held.get(key)

    def put(self, key: K, value: V) -> None:
        """It is told to have this."""
        self._since[key] = value

    def put_all(self, values: Mapping[K, V]) -> None:
        """It is told to have these."""
        self._since.update(values)

    def drop(self, key: K) -> None:
        """It is told not to have this."""
        self._since[key] = None

    def values(self) -> Iterator[V]:
        """All that is there."""
        yield from (value for value in self._since.values() if value is not None)
        yield from (value for key, value in self._held.items() if key not in self._since)


@dataclass(slots=True)
class Plane:
    """One plane, what it holds once ``ops`` are done, and the Ops that it is about to get."""

    plane: DataPlane
    ops: list[Op] = field(default_factory=list)
    last: list[Op] = field(default_factory=list)  # from the first on by which something leaves this plane
    seen: ForwardingState = field(default_factory=ForwardingState)
    servers: Draft[str, ServerSpec] = field(default_factory=Draft)
    tables: Draft[str, object] = field(default_factory=Draft)
    services: Draft[str, ServiceSpec] = field(default_factory=Draft)
    told: bool = True  # something since it was asked
    opened: dict[Listener, bool] = field(default_factory=dict)  # since it was asked; False: closed

    def saw(self, state: ForwardingState) -> None:
        """It was asked what it holds."""
        self.seen, self.opened, self.told = state, {}, False
        self.servers.saw(state.servers)
        self.tables.saw(state.tables)
        self.services.saw(state.services)

    @property
    def listeners(self) -> frozenset[Listener]:
        """What is open."""
        opened = {it for it, is_open in self.opened.items() if is_open}
        return (self.seen.listeners | opened) - (self.opened.keys() - opened) if self.opened else self.seen.listeners

    def holds(self, op: DeleteServer | DeleteTable | DeleteService | CloseListener) -> bool:
        """Whether it has what the Op takes away."""
        match op:
            case DeleteServer(key):
                return key in self.servers
            case DeleteTable(digest):
                return digest in self.tables
            case DeleteService(name):
                return name in self.services
            case CloseListener(listener):
                return self.opened.get(listener, listener in self.seen.listeners)

    def give_servers(self, specs: Sequence[ServerSpec]) -> None:
        """Let it have these servers, too."""
        if specs:
            (self.last or self.ops).extend(map(PutServer, specs))
            self.told = True
            self.servers.put_all({spec.key: spec for spec in specs})

    def give(self, op: Op) -> None:
        """Let it do this, too."""
        (self.last or self.ops).append(op)
        self.told = True
        match op:
            case PutServer(spec):
                self.servers.put(spec.key, spec)
            case DeleteServer(key):
                self.servers.drop(key)
            case PutTable(digest, _):
                self.tables.put(digest, True)
            case DeleteTable(digest):
                self.tables.drop(digest)
            case PutService(spec):
                self.services.put(spec.name, spec)
            case DeleteService(name):
                self.services.drop(name)
            case OpenListener(listener):
                self.opened[listener] = True
            case CloseListener(listener):
                self.opened[listener] = False
