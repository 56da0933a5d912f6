# SPDX-License-Identifier: Apache-2.0
"""What is read for people: counters, and the flows that are established. Nothing here changes anything."""

from __future__ import annotations

from fairlead.dataplane.base import Counters, FlowFilter
from fairlead.dataplane.xdp import abi, flows, records
from fairlead.dataplane.xdp.flows import Found
from fairlead.dataplane.xdp.installation import Installation
from fairlead.dataplane.xdp.records import u32
from fairlead.dataplane.xdp.rows import ServerRows, ServiceRows, Traffic
from fairlead.errors import DataPlaneError
from fairlead.model.views import FlowPage, FlowView


def counters(installation: Installation, *, brief: bool) -> Counters:
    """All counters; ``brief``: without those of servers and services."""
    if not installation.running:
        return Counters()
    held, maps = installation.held, installation.kernel.maps
    raw = maps["cpus"].get(u32(0))
    packets = abi.sum_counters(raw) if raw is not None else {}
    fates = {counter.name.lower(): n for counter, n in packets.items()}
    if brief:  # flows are not counted, and 100,000 rows not read, every second for nobody
        return Counters(packets=fates)
    live = installation.census.count()
    by_server = Traffic(maps["server_traffic"].first_rows(max(held.servers_by_id, default=0) + 1))
    by_service = Traffic(maps["service_traffic"].first_rows(max(held.services_by_id, default=0) + 1))
    servers = ServerRows(held.same_key, by_server, live.servers)
    services = ServiceRows(held.services, by_service, live.services)
    return Counters(servers, services, packets=fates)


def listed(installation: Installation, which: FlowFilter, cursor: str | None, limit: int) -> FlowPage:
    """Flows of the table, IPv4 first.

    Raises:
        DataPlaneError: The cursor is none of ours.
    """
    if cursor is not None and not cursor.isdecimal():
        raise DataPlaneError(f"{cursor!r} is not a cursor of a list of connections; start again without one")
    if not installation.running:
        return FlowPage((), None)
    held, now = installation.held, installation.census.jiffies()
    services = {it.number for it in held.services_by_id.values() if which.service in {None, it.spec.name}}
    servers = {it.number for it in held.servers_by_id.values() if which.server in {None, it.spec.key}}

    def wanted(entry: abi.Flow4) -> bool:
        return entry.service in services and entry.server in servers and _lives(installation, entry, now)

    found, after = flows.page(installation.flow_table, cursor, limit, wanted)
    return FlowPage(tuple(_view(installation, it, now) for it in found), after)


def _lives(installation: Installation, entry: abi.Flow4, now: int) -> bool:
    service = installation.held.services_by_id.get(entry.service)
    server = installation.held.servers_by_id.get(entry.server)
    if service is None or server is None or server.generation != entry.generation:
        return False
    limits = records.timeouts(service.spec.idle_timeout_ms, installation.hertz)
    limit = int.from_bytes(limits[entry.state * 4 : entry.state * 4 + 4], "little")
    return _age(now, entry.seen) <= limit


def _view(installation: Installation, found: Found, now: int) -> FlowView:
    held, hertz, entry = installation.held, installation.hertz, found.entry
    return FlowView(
        service=held.services_by_id[entry.service].spec.name,
        server=held.servers_by_id[entry.server].spec.key,
        client=_endpoint(entry.src, entry.sport),
        vip=_endpoint(entry.dst, entry.dport),
        state=flows.STATES[abi.State(entry.state)],
        age_s=round(_age(now, found.details.born) / hertz, 3),
        idle_s=round(max(0, _age(now, entry.seen)) / hertz, 3),
        bytes_in=found.details.octets,
        bytes_out=0,
        worker=-1,
    )


def _age(now: int, then: int) -> int:
    """Jiffies between, as the program counts them: signed, of 32 bits."""
    gap = (now - then) & 0xFFFFFFFF
    return gap - (1 << 32) if gap >= 1 << 31 else gap


def _endpoint(address: bytes, port: int) -> str:
    at = records.address_of(address)
    return f"[{at}]:{port}" if at.version == 6 else f"{at}:{port}"
