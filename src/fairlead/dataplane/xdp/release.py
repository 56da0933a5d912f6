# SPDX-License-Identifier: Apache-2.0
"""Ids of former servers and services are given back once no flow and no entry of any map holds them."""

from __future__ import annotations

from collections.abc import Mapping

from fairlead.dataplane.xdp.held import ServerHeld
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.records import u32
from fairlead.dataplane.xdp.replies import reply_place


def lingers(held: Holdings) -> bool:
    """Whether ids wait to be given back."""
    return len(held.servers_by_id) > len(held.servers) or len(held.services_by_id) > len(held.services)


def release(held: Holdings, busy_servers: Mapping[int, int], busy_services: Mapping[int, int]) -> int:
    """Give ids back; how many. What is to be deleted waits for ``flush``.

    Args:
        held: What is held.
        busy_servers: Live flows by id.
        busy_services: Likewise.
    """
    in_tables = {number for table in held.tables.values() for number in table.members}
    former = [it for it in held.servers_by_id.values() if it.gone or held.servers.get(it.spec.key) is not it]
    servers = [it for it in former if it.number not in in_tables and not busy_servers.get(it.number)]
    for server in servers:
        _forget_server(held, server)
    in_replies = held.replies.services()
    services = [
        number
        for number, it in held.services_by_id.items()
        if it.gone and not busy_services.get(number) and number not in in_replies
    ]
    for number in services:
        del held.services_by_id[number]
        held.mirrors["names_service"].delete(u32(number))
        held.mirrors["services"].content.pop(u32(number), None)
        held.service_ids.release(number)
    return len(servers) + len(services)


def _forget_server(held: Holdings, server: ServerHeld) -> None:
    number, key = server.number, server.spec.key
    for reply in held.replies.forget_server(number):
        name, raw = reply_place(reply)
        held.mirrors[name].delete(raw)
    del held.servers_by_id[number]
    if others := tuple(it for it in held.same_key[key] if it is not server):
        held.same_key[key] = others
    else:
        del held.same_key[key]
    held.mirrors["names_server"].delete(u32(number))
    held.mirrors["servers"].content.pop(u32(number), None)
    held.server_ids.release(number)
