# SPDX-License-Identifier: Apache-2.0
"""Lists of flows, a page at a time, out of the workers' memory."""

from __future__ import annotations

from collections.abc import Iterable

from fairlead.dataplane.base import FlowFilter
from fairlead.dataplane.proxy import abi, codec
from fairlead.dataplane.proxy.control import Message, WorkerLost
from fairlead.dataplane.proxy.registry import Registry
from fairlead.dataplane.proxy.workers import Worker
from fairlead.errors import DataPlaneError
from fairlead.model.views import FlowPage, FlowView


async def page(
    workers: Iterable[Worker], registry: Registry, which: FlowFilter, cursor: str | None, limit: int
) -> FlowPage:
    """Flows of one worker after the other; the cursor is SLOT:CURSOR.

    Raises:
        DataPlaneError: The cursor is none of ours.
    """
    slot, at = _parse_cursor(cursor)
    service = registry.service_ids.get(which.service) if which.service else 0
    server = registry.server_ids.get(which.server) if which.server else 0
    found: list[FlowView] = []
    if service is None or server is None:
        return FlowPage((), None)
    for worker in workers:
        if worker.slot < slot:
            continue
        at = at if worker.slot == slot else 0
        while True:
            if len(found) >= limit:
                return FlowPage(tuple(found), f"{worker.slot}:{at}")
            body = codec.encode_flows(at, limit - len(found), service, server)
            try:
                reply = await worker.control.request(Message(abi.Type.FLOWS, body))
            except WorkerLost:
                break
            found += (_view(registry, record, worker.slot) for record in reply.records)
            at = reply.done.cursor
            if at == 0:
                break
    return FlowPage(tuple(found), None)


def _view(registry: Registry, record: bytes, slot: int) -> FlowView:
    service, server = codec.flow_ids(record)
    name = registry.server_ids.name(server) if server else ""
    return codec.decode_flow(record, slot, registry.service_ids.name(service), name)


def _parse_cursor(cursor: str | None) -> tuple[int, int]:
    if cursor is None:
        return 0, 0
    slot, _, at = cursor.partition(":")
    if not (slot.isdecimal() and at.isdecimal() and int(at) <= 0xFFFFFFFF):
        raise DataPlaneError(f"{cursor!r} is not a cursor of a list of connections; start again without one")
    return int(slot), int(at)
