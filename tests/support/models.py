# SPDX-License-Identifier: Apache-2.0
"""Builders of model objects for tests: what a test does not name gets a plain, valid value."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeResult, Verdict
from fairlead.model.net import Endpoint, Listen, Protocol
from fairlead.model.pool import HealthMonitor, MonitorType, Pool, RealServer
from fairlead.model.reasons import DownReason
from fairlead.model.service import Engine, Forwarding, Scheduler, VirtualService
from fairlead.model.state import (
    FlowTreatment,
    ForwardingState,
    Listener,
    ServerSpec,
    ServiceMode,
    ServiceSpec,
    TableMember,
    TableSpec,
)
from fairlead.policy import tables

SEED = bytes(range(16))

UP = HealthState(Verdict.UP, 0, True, None, "200 OK")
DOWN = HealthState(Verdict.DOWN, 0, True, DownReason.REFUSED, "connection refused")
PASSED = ProbeResult(True, None, "200 OK", 0.001)
REFUSED = ProbeResult(False, DownReason.REFUSED, "connection refused", 0.001)
TCP_MONITOR = HealthMonitor(MonitorType.TCP)


def endpoint(text: str) -> Endpoint:
    """``10.0.0.1:80`` or ``[2001:db8::1]:80``."""
    host, _, port = text.rpartition(":")
    return Endpoint(ip_address(host.strip("[]")), int(port))


def listen(text: str) -> Listen:
    """``10.0.0.1:80``, ``[2001:db8::1]:80`` or ``10.0.0.1:80-89``."""
    host, _, ports = text.rpartition(":")
    first, _, last = ports.partition("-")
    return Listen(ip_address(host.strip("[]")), int(first), int(last or first))


def server(address: str, **changes: Any) -> RealServer:
    """A real server at ``address``, named after it unless ``name`` is given."""
    changes.setdefault("name", address)
    return RealServer(endpoint=endpoint(address), **changes)


def pool(*servers: RealServer, name: str = "web", **changes: Any) -> Pool:
    """A pool without monitors unless ``monitors`` is given."""
    return Pool(name, servers, **changes)


def service(at: str = "192.0.2.10:80", *, name: str = "web", pool: str = "web", **changes: Any) -> VirtualService:
    """A service at one address."""
    return VirtualService(name=name, listen=(listen(at),), pool=pool, **changes)


def configuration(*parts: VirtualService | Pool, **changes: Any) -> Configuration:
    """A configuration of these services and pools."""
    services = {part.name: part for part in parts if isinstance(part, VirtualService)}
    pools = {part.name: part for part in parts if isinstance(part, Pool)}
    return Configuration(services=services, pools=pools, **changes)


def server_spec(key: str, address: str = "10.0.0.1:80", **changes: Any) -> ServerSpec:
    """A server as a data plane holds it."""
    return ServerSpec(
        key=key,
        endpoint=endpoint(address),
        weight=changes.pop("weight", 1),
        max_connections=changes.pop("max_connections", 0),
        flows=changes.pop("flows", FlowTreatment.KEEP),
        **changes,
    )


def table_spec(
    weights: Mapping[str, int], *, dead: frozenset[str] = frozenset(), scheduler: Scheduler = Scheduler.MAGLEV,
    size: int = 65537, seed: bytes = SEED,
) -> TableSpec:  # fmt: skip
    """A table over servers that are named by their identity."""
    members = tuple(TableMember(f"web/{name}", name, weight) for name, weight in weights.items())
    live = frozenset(f"web/{name}" for name in weights if name not in dead)
    return TableSpec(scheduler, size, seed, members, live)


def service_spec(name: str = "web", table: str | None = None, **changes: Any) -> ServiceSpec:
    """A service that forwards by ``table``, or rejects when there is none."""
    settings: dict[str, Any] = {
        "protocol": Protocol.TCP,
        "forwarding": Forwarding.PROXY,
        "engine": Engine.AUTO,
        "scheduler": Scheduler.MAGLEV,
        "mode": ServiceMode.REJECT if table is None else ServiceMode.FORWARD,
        "seed": SEED,
        "idle_timeout_ms": 350_000,
        "connect_timeout_ms": 5_000,
        "half_close_timeout_ms": 30_000,
        "retries": 3,
    }
    return ServiceSpec(name=name, table=table, **(settings | changes))


def listener(service: str = "web", at: str = "192.0.2.10:80", protocol: Protocol = Protocol.TCP) -> Listener:
    """A listener of ``service``."""
    return Listener(service, protocol, listen(at))


def forwarding_state(
    servers: tuple[ServerSpec, ...] = (), recipes: tuple[TableSpec, ...] = (),
    services: tuple[ServiceSpec, ...] = (), listeners: tuple[Listener, ...] = (),
) -> ForwardingState:  # fmt: skip
    """A state from its parts; tables are named by their digests."""
    return ForwardingState(
        {spec.key: spec for spec in servers},
        {tables.digest(recipe): recipe for recipe in recipes},
        {spec.name: spec for spec in services},
        frozenset(listeners),
    )
