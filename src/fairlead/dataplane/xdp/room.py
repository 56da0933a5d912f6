# SPDX-License-Identifier: Apache-2.0
"""How much room is needed in the kernel: what is held and what is to come, as entries of maps.

Invariant: pure.
"""

from __future__ import annotations

import math

from fairlead.dataplane.xdp import abi, records
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.model.service import Forwarding
from fairlead.model.state import Listener, ServerSpec, ServiceSpec, TableSpec

MAX_SERVICES = 1 << 16  # ids of flows have 16 bits
NO_FLOWS = 1024  # entries of the table of a family that no service has
# Flow tables, and entries in each of their blocks: never given up only because their size should be another.
FLOW_MAPS = {"flows4": abi.PLACES4, "flows6": 1}
_SMALLEST = 1024


class Needs:
    """How much room is needed for what is held and what is added to it."""

    def __init__(self, held: Holdings) -> None:
        self._held = held
        self.servers = len(held.servers_by_id)
        self.services = len(held.services_by_id)
        self.units = sum(it.units for it in held.tables.values())
        self.tables = len(held.tables)
        self._listeners = set(held.listeners)
        self._members = {digest: len(it.members) for digest, it in held.tables.items()}
        self._nat = {name: it.spec.table for name, it in held.services.items() if it.spec.forwarding is Forwarding.NAT}

    def server(self, spec: ServerSpec) -> None:
        """One more, unless it is there."""
        held = self._held.servers.get(spec.key)
        if held is None or held.spec.endpoint != spec.endpoint:
            self.servers += 1

    def table(self, digest: str, spec: TableSpec) -> None:
        """One more; it is written before the one that it follows goes."""
        self.units += records.table_units(spec.size, len(spec.members))
        self.tables += 1
        self._members[digest] = len(spec.members)

    def service(self, spec: ServiceSpec) -> None:
        """One more, unless it is there."""
        held = self._held.services.get(spec.name)
        if held is None or held.spec.forwarding is not spec.forwarding:
            self.services += 1
        if spec.forwarding is Forwarding.NAT:
            self._nat[spec.name] = spec.table or self._nat.get(spec.name)

    def listener(self, listener: Listener) -> None:
        """One more."""
        self._listeners.add(listener)

    @property
    def families(self) -> set[int]:
        """Of the addresses where services are offered."""
        return {it.listen.address.version for it in self._listeners}

    @property
    def listeners(self) -> int:
        """How many there are."""
        return len(self._listeners)

    @property
    def replies(self) -> int:
        """At most so many."""
        ways: dict[str, int] = {}
        for listener in self._listeners:
            ways[listener.service] = ways.get(listener.service, 0) + 1
        mirrors = self._held.mirrors
        now = len(mirrors["replies4"].content) + len(mirrors["replies6"].content)
        return now + sum(ways.get(name, 1) * self._members.get(digest or "", 0) for name, digest in self._nat.items())


def sizes_of(needs: Needs, flow_table: int, *, slack: int) -> dict[str, int]:
    """Entries of maps; with ``slack`` above 1 rounded up, so that growth is rare."""

    def room(number: int, smallest: int = _SMALLEST) -> int:
        return number if slack == 1 else _power(max(number * slack, smallest))

    servers, services = room(needs.servers + 1, 4096), min(room(needs.services + 1), MAX_SERVICES)
    listeners, replies = room(needs.listeners), room(needs.replies)
    entries, none = (_power(flow_table), NO_FLOWS) if slack > 1 else (NO_FLOWS + 1, 0)
    four, six = (entries if family in needs.families else none for family in (4, 6))
    blocks = math.ceil(four / abi.PLACES4)
    return {
        "servers": servers,
        "server_traffic": servers,
        "names_server": servers,
        "services": services,
        "service_traffic": services,
        "turns": services,
        "names_service": services,
        "listeners4": listeners,
        "listeners6": listeners,
        "vips": listeners,
        "names_listener": listeners,
        "replies4": replies,
        "replies6": replies,
        "names_table": room(needs.tables),
        "slots": room(needs.units + 1, 1 << 17),
        "flows4": blocks,
        "touched": blocks // abi.BLOCKS_PER_WORD,
        "flows6": six,
    }


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
