# SPDX-License-Identifier: Apache-2.0
"""Puts together what the API shows, from what was decided and what the data plane counted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fairlead.dataplane.base import Counters, ServerCounters, ServiceCounters
from fairlead.engine.advice import describe
from fairlead.model.configuration import Configuration
from fairlead.model.service import Engine, VirtualService
from fairlead.model.views import ServerView, ServiceView
from fairlead.policy.derive import Derived
from fairlead.policy.status import ServerStatus

NOTHING_COUNTED = ServerCounters()
NO_SERVICE_COUNTED = ServiceCounters()


def server_view(
    status: ServerStatus,
    counted: ServerCounters,
    since_at: float,
    to_wall: Callable[[float], float],
    ejections: int = 0,
) -> ServerView:
    """One server; ``to_wall`` turns a monotonic moment into seconds since the epoch."""
    return ServerView(
        key=status.key,
        pool=status.pool,
        name=status.name,
        address=str(status.endpoint),
        weight=status.weight,
        effective_weight=status.effective_weight,
        backup=status.backup,
        admin=status.admin.value,
        health="none" if status.health is None else status.health.value,
        idle_reason=None if status.idle_reason is None else status.idle_reason.value,
        down_reason=None if status.down_reason is None else status.down_reason.value,
        detail=status.detail,
        since_at=since_at,
        drain_deadline_at=None if status.drain_deadline is None else to_wall(status.drain_deadline),
        max_connections=status.max_connections,
        active=counted.active,
        connections_total=counted.connections,
        connect_failures_total=counted.connect_failures,
        bytes_in_total=counted.bytes_in,
        bytes_out_total=counted.bytes_out,
        share=status.share,
        share_reason=None if status.share_reason is None else status.share_reason.value,
        ejected_until_at=None if status.ejected_until is None else to_wall(status.ejected_until),
        ejections_total=ejections,
        agent=None if status.advice is None else describe(status.advice),
    )


def server_views(
    derived: Derived,
    counters: Counters,
    since: Mapping[str, float],
    to_wall: Callable[[float], float],
    ejections: Mapping[str, int],
) -> tuple[ServerView, ...]:
    """Every server, in the order of the configuration, departed ones last; ``ejections`` are totals by key."""
    return tuple(
        server_view(
            it, counters.servers.get(it.key, NOTHING_COUNTED), since.get(it.key, 0.0), to_wall, ejections.get(it.key, 0)
        )
        for it in derived.ordered
    )


def service_views(
    configuration: Configuration, derived: Derived, counters: Counters, servers: tuple[ServerView, ...]
) -> tuple[ServiceView, ...]:
    """Every service with the servers of its pool."""
    by_pool: dict[str, list[ServerView]] = {}
    for view in servers:
        by_pool.setdefault(view.pool, []).append(view)
    return tuple(
        _service_view(service, derived, counters.services.get(name, NO_SERVICE_COUNTED), by_pool)
        for name, service in configuration.services.items()
    )


def _service_view(
    service: VirtualService, derived: Derived, counted: ServiceCounters, by_pool: Mapping[str, list[ServerView]]
) -> ServiceView:
    status = derived.services[service.name]
    return ServiceView(
        name=service.name,
        listen=tuple(str(listen) for listen in service.listen),
        protocol=service.protocol.value,
        pool=service.pool,
        forwarding=service.forwarding.value,
        engine=(Engine.USERSPACE if service.engine is Engine.AUTO else service.engine).value,
        scheduler=service.scheduler.value,
        state=status.state,
        mode=status.mode.name.lower(),
        active=counted.active,
        queued=counted.queued,
        connections_total=counted.connections,
        bytes_in_total=counted.bytes_in,
        bytes_out_total=counted.bytes_out,
        rejected={reason.name.lower(): count for reason, count in counted.rejected.items() if count},
        servers=tuple(by_pool.get(service.pool, ())),
    )
