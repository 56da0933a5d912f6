# SPDX-License-Identifier: Apache-2.0
"""What the workers were told to hold, by name and by id: the source from which a new worker is fed.

Invariants: an id means the same in all workers; a freed id is not given out again before all others were, because
flows may still carry it; the position of that rotation outlives the agent in the shared memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fairlead.dataplane.proxy import abi
from fairlead.dataplane.proxy.listeners import Port
from fairlead.errors import DataPlaneError
from fairlead.model.state import Listener, ServerSpec, ServiceSpec, TableSpec


class Ids:
    """Ids of one kind of thing.

    Args:
        kind: Their name, for messages.
        limit: Ids are 1 to ``limit`` - 1.
        load: Reads how many were ever given out.
        store: Keeps that number.
    """

    def __init__(self, kind: str, limit: int, load: Callable[[], int], store: Callable[[int], None]) -> None:
        self._kind = kind
        self._limit = limit - 1
        self._load = load
        self._store = store
        self._by_name: dict[str, int] = {}
        self._by_id: dict[int, str] = {}

    def get(self, name: str) -> int | None:
        """The id of ``name``, if it has one."""
        return self._by_name.get(name)

    def name(self, number: int) -> str:
        """Who has the id, or had it last."""
        return self._by_id.get(number) or f"#{number}"

    def holds(self, number: int) -> bool:
        """Whether the id is in use."""
        return self._by_name.get(self._by_id.get(number, "")) == number

    def items(self) -> Iterator[tuple[str, int]]:
        """All names with their ids."""
        return iter(self._by_name.items())

    def claim(self, name: str, recycled: Callable[[int], None] | None = None) -> int:
        """The id of ``name``, a new one if it has none; ``recycled`` is called when somebody else had it before.

        Raises:
            DataPlaneError: All ids are in use.
        """
        if (known := self._by_name.get(name)) is not None:
            return known
        if len(self._by_name) >= self._limit:
            raise DataPlaneError(f"the proxy data plane holds at most {self._limit} {self._kind}s")
        given = self._load()
        while self.holds(number := 1 + given % self._limit):
            given += 1
        self._store(given + 1)
        self.adopt(name, number)
        if recycled is not None and given >= self._limit:
            recycled(number)
        return number

    def adopt(self, name: str, number: int) -> bool:
        """Take over an id that a running worker knows; False when name or id are bound otherwise."""
        if (known := self._by_name.get(name)) is not None or self.holds(number):
            return known == number
        self._by_name[name] = number
        self._by_id[number] = name
        return True

    def remember(self, name: str, number: int) -> None:
        """Who had the id, if nobody has it now."""
        self._by_id.setdefault(number, name)

    def release(self, name: str) -> None:
        """Free the id of ``name``; until it is given out again it still tells who had it."""
        self._by_name.pop(name, None)


@dataclass(frozen=True, slots=True)
class Table:
    """A table as sent: recipe and message body are None when it was adopted from running workers."""

    spec: TableSpec | None
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Service:
    """A service as wanted, and how a worker's dump gives it back."""

    spec: ServiceSpec
    dumped: ServiceSpec


class Registry:
    """Everything told to the workers. ``version`` grows with every change.

    Args:
        load: Reads one of three numbers that outlive the agent.
        store: Keeps it.
    """

    def __init__(self, load: Callable[[int], int], store: Callable[[int, int], None]) -> None:
        self.version = 0
        self.servers: dict[str, ServerSpec] = {}
        self.tables: dict[str, Table] = {}
        self.named: Counter[str] = Counter()  # how many tables of a known recipe name a server
        self.contents: dict[str, int] = {}  # hash of each table's slots, as first reported
        self.services: dict[str, Service] = {}
        self.listeners: set[Listener] = set()
        self.ports: dict[Port, str] = {}  # open ports, and the service each belongs to
        self.server_ids = Ids("server", abi.MAX_SERVERS, lambda: load(0), lambda n: store(0, n))
        self.service_ids = Ids("service", abi.MAX_SERVICES, lambda: load(1), lambda n: store(1, n))
        self.table_ids = Ids("table", abi.MAX_TABLES, lambda: load(2), lambda n: store(2, n))

    def forget_server(self, key: str) -> None:
        """It is gone from all workers."""
        self.servers.pop(key, None)
        self.named.pop(key, None)
        self.server_ids.release(key)
        self.version += 1

    def put_table(self, digest: str, table: Table) -> None:
        """It is there, or its recipe is known from now on."""
        self._unname(digest)
        self.tables[digest] = table
        if table.spec is not None:
            self.named.update(member.key for member in table.spec.members)

    def forget_table(self, digest: str) -> None:
        """It is gone from all workers."""
        self._unname(digest)
        self.tables.pop(digest, None)
        self.contents.pop(digest, None)
        self.table_ids.release(digest)
        self.version += 1

    def forget_service(self, name: str) -> None:
        """It is gone from all workers."""
        self.services.pop(name, None)
        self.service_ids.release(name)
        self.version += 1

    def _unname(self, digest: str) -> None:
        known = self.tables.get(digest)
        if known is not None and known.spec is not None:
            for member in known.spec.members:
                self.named[member.key] -= 1

    def forget_port(self, port: Port) -> None:
        """No worker listens there any more."""
        self.ports.pop(port, None)
        self.version += 1
