# SPDX-License-Identifier: Apache-2.0
"""The choice of a server for a flow that is only thought of, by the arithmetic of the data planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.model.net import Endpoint, Protocol
from fairlead.model.service import Scheduler
from fairlead.model.state import ServiceSpec, TableSpec
from fairlead.policy.access import in_ranges
from fairlead.policy.flowhash import flow_hash, flow_message, slot_of, source_message

HASHED = frozenset({Scheduler.MAGLEV, Scheduler.SH})  # these alone depend on nothing but packet and table


@dataclass(frozen=True, slots=True)
class Choice:
    """What a table says about a flow; ``server`` is None when the flow alone does not decide."""

    server: str | None
    says: str


def admitted(spec: ServiceSpec, client: Endpoint) -> bool:
    """Whether allow and deny let the client in."""
    return spec.allowed is None or in_ranges(spec.allowed, client.address)


def choice(spec: ServiceSpec, table: TableSpec, slots: Sequence[int], client: Endpoint, vip: Endpoint) -> Choice:
    """Which server a new flow gets.

    Args:
        spec: The service.
        table: The recipe of its table.
        slots: The table, filled (``tables.build``).
        client: Where the flow comes from.
        vip: Where it goes.
    """
    if spec.scheduler not in HASHED:
        live = ", ".join(sorted(table.live))
        return Choice(None, f"{spec.scheduler} decides when the flow begins, among {live}")
    by_source = spec.scheduler is Scheduler.SH
    protocol: Protocol = spec.protocol
    message = source_message(client.address) if by_source else flow_message(protocol, client, vip)
    value = flow_hash(spec.seed, message)
    slot = slot_of(value, table.size)
    server = table.members[slots[slot]].key
    what = "the client's address" if by_source else "addresses and ports"
    return Choice(server, f"hash {value:016x} of {what} is slot {slot} of {table.size}, that of {server}")
