# SPDX-License-Identifier: Apache-2.0
"""Monitors with ``through: service``: which services' ways their probes take, and what keeps them from it."""

from __future__ import annotations

from collections.abc import Iterator

from fairlead.config.findings import shown
from fairlead.config.schema.document import Draft
from fairlead.config.schema.health import Dns, Exec, Icmp, Monitor, Through, Udp
from fairlead.config.schema.service import Service
from fairlead.model.net import Endpoint, Protocol
from fairlead.model.service import Forwarding, Passage

WAYS = (Forwarding.DSR, Forwarding.TUNNEL)
ANY_PORT = (1, 65535)


def services_of(monitor: Monitor, pool: str, draft: Draft) -> Iterator[tuple[str, Service]]:
    """The services with ``pool`` whose packets go to the servers as they are, and whose protocol the probe speaks."""
    protocol = _protocol(monitor)
    for name, service in draft.services.items():
        if service.pool == pool and service.forwarding in WAYS and service.protocol is protocol:
            yield name, service


def passages(monitor: Monitor, pool: str, draft: Draft) -> list[Passage]:
    """The ways that the probes of a monitor without faults take: each service's first address and port."""
    port: int | None = getattr(monitor, "port", None)
    return [
        Passage(
            Endpoint(service.listen[0].address, port or service.listen[0].first), service.protocol, service.forwarding
        )
        for _, service in services_of(monitor, pool, draft)
    ]


def faults(monitor: Monitor, pool: str, draft: Draft) -> Iterator[tuple[str, str]]:
    """Key and message of all that is wrong with a monitor that says ``through: service``."""
    if monitor.through is not Through.SERVICE:
        return
    if isinstance(monitor, Icmp | Exec):
        yield (
            "through",
            (
                f"`{monitor.type}` cannot take a service's way, which is for its TCP or UDP packets alone; "
                "use `tcp`, `tls`, `http`, `https`, `grpc`, `udp` or `dns`"
            ),
        )
        return
    if monitor.address is not None:
        yield (
            "address",
            "has no meaning with `through: service`: probes go where the service's packets go",
        )
    found = list(services_of(monitor, pool, draft))
    if not found:
        yield (
            "through",
            (
                f"no service with `protocol: {_protocol(monitor)}` and `forwarding: dsr` or `tunnel` uses this pool, "
                "so there is no way to take; remove `through`"
            ),
        )
    for name, service in found:
        yield from _faults_of(monitor, pool, draft, name, service)


def _faults_of(monitor: Monitor, pool: str, draft: Draft, name: str, service: Service) -> Iterator[tuple[str, str]]:
    first = service.listen[0]
    if getattr(monitor, "port", None) is None and (first.first, first.last) == ANY_PORT:
        yield "through", f"needs `port`, because service {shown(name)} has every port"
    silent = isinstance(monitor, Udp) and monitor.expect is None
    family = first.address.version
    other = next((it for it in draft.pools[pool].servers if it.endpoint.address.version != family), None)
    if silent and other is not None:
        yield (
            "through",
            (
                f"needs `expect`: server {other.endpoint} is not of the address family of service {shown(name)}, "
                "so its ICMP errors do not come back"
            ),
        )


def _protocol(monitor: Monitor) -> Protocol:
    return Protocol.UDP if isinstance(monitor, Udp | Dns) else Protocol.TCP
