# SPDX-License-Identifier: Apache-2.0
"""What Prometheus scrapes, made from the same views as the rest of the API.

Invariant: every label has few values (names from the configuration, words of an enum, a worker's slot); an address
of a client never becomes one. No two samples share name and labels, for one such pair voids a whole scrape.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from fairlead.api.facade import Facade
from fairlead.model.pool import AdminState
from fairlead.model.views import HealthView, ServerView, ServiceView, StatusView, VipView, VrrpView, WorkerView

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
Samples: TypeAlias = dict[tuple[str, ...], float]
PACKET_FATES = ("pass_", "drop_", "sent_")
SERVICE_STATES = ("up", "degraded", "down")
VRRP_STATES = ("initialize", "backup", "active")


@dataclass(frozen=True, slots=True)
class Scrape:
    """Everything one scrape is made of; implements the collector interface of prometheus-client."""

    status: StatusView
    ready: bool
    services: tuple[ServiceView, ...]
    servers: tuple[ServerView, ...]
    health: tuple[HealthView, ...]
    vips: tuple[VipView, ...]
    vrrp: tuple[VrrpView, ...]

    def collect(self) -> Iterator[Metric]:
        """All families, each with its HELP."""
        yield from _daemon(self.status, self.ready)
        yield from _workers(self.status.workers)
        yield from _packets(self.status.packets)
        yield from _services(self.services)
        yield from _servers(self.servers)
        yield from _probes(self.health)
        yield from _vips(self.vips)
        yield from _vrrp(self.vrrp)
        yield from ProcessCollector(namespace="fairlead", registry=None).collect()


class Metrics:
    """Renders scrapes, one at a time and beside the event loop: 10 000 servers take a good second of CPU."""

    def __init__(self, facade: Facade) -> None:
        self._facade = facade
        self._one_at_a_time = asyncio.Lock()

    async def render(self, accept: str) -> tuple[bytes, str]:
        """The text of one scrape and its media type; OpenMetrics for a client that asks for it."""
        async with self._one_at_a_time:
            scrape = Scrape(
                self._facade.status(),
                self._facade.ready(),
                await self._facade.services(),
                await self._facade.servers(),
                self._facade.health(),
                self._facade.vips(),
                self._facade.vrrp(),
            )
            if "application/openmetrics-text" in accept:
                text = await asyncio.to_thread(openmetrics.generate_latest, scrape, version="1.0.0")
                return text, openmetrics.CONTENT_TYPE_LATEST
            return await asyncio.to_thread(generate_latest, scrape), TEXT_FORMAT


def _gauge(name: str, text: str, labels: Iterable[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(f"fairlead_{name}", text, labels=tuple(labels))
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: Iterable[str], samples: Samples) -> Metric:
    family = CounterMetricFamily(f"fairlead_{name}", text, labels=tuple(labels))
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def _daemon(status: StatusView, ready: bool) -> Iterator[Metric]:
    yield _gauge("build_info", "Version of the running daemon; always 1.", ["version"], {(status.version,): 1})
    for name, text, value in (
        ("start_time_seconds", "When the daemon started, in seconds since the Unix epoch.", status.started_at),
        ("ready", "1 once the data plane is programmed.", ready),
        ("converged", "1 while the data plane holds what it should hold.", status.converged),
        ("config_last_reload_success", "1 when the last reload was taken over.", status.last_reload_ok),
        (
            "config_last_reload_timestamp_seconds",
            "When the configuration was last loaded, in seconds since the Unix epoch.",
            status.last_reload_at,
        ),
    ):
        yield _gauge(name, text, [], {(): float(value)})
    text = "Differences between the data plane and its wanted state that were found and repaired."
    yield _counter("drift_repairs_total", text, [], {(): status.drift_repairs_total})


def _packets(packets: Mapping[str, int]) -> Iterator[Metric]:
    """Forwarded packets count with their service and server; all others here, each once."""
    fates: Samples = {(name,): n for name, n in packets.items() if name.startswith(PACKET_FATES)}
    text = "Packets the XDP program gave to the host (pass_), dropped (drop_) or answered (sent_), by reason."
    yield _counter("xdp_packets_total", text, ["fate"], fates)
    text = "What else the XDP program counted: new flows, flows it could not store, fragments."
    others: Samples = {(name,): n for name, n in packets.items() if (name,) not in fates}
    yield _counter("xdp_occasions_total", text, ["occasion"], others)


def _workers(workers: tuple[WorkerView, ...]) -> Iterator[Metric]:
    slots = {(str(worker.slot),): worker for worker in workers}
    for name, text, attribute in (
        ("worker_active_connections", "Connections a worker carries now.", "active"),
        ("worker_accepting", "0 while a worker takes no new connections.", "accepting"),
        ("worker_descriptors_used", "File descriptors a worker has open.", "descriptors_used"),
        ("worker_descriptors_limit", "File descriptors a worker may open.", "descriptors_limit"),
    ):
        yield _gauge(
            name, text, ["worker"], {slot: float(getattr(worker, attribute)) for slot, worker in slots.items()}
        )
    text = "Times a worker paused accepting because its file descriptors ran out."
    yield _counter(
        "worker_accept_pauses_total", text, ["worker"], {slot: w.accept_pauses_total for slot, w in slots.items()}
    )


def _services(services: tuple[ServiceView, ...]) -> Iterator[Metric]:
    named = {service.name: service for service in services}
    yield _gauge(
        "service_state",
        "1 for the state a service is in, 0 for the others.",
        ["service", "state"],
        {(name, state): float(service.state == state) for name, service in named.items() for state in SERVICE_STATES},
    )
    text = "Connections of a service that are established now."
    yield _gauge("service_active_connections", text, ["service"], {(name,): s.active for name, s in named.items()})
    waiting = "Connections of a service that wait for a server that is not full."
    yield _gauge("service_queued_connections", waiting, ["service"], {(name,): s.queued for name, s in named.items()})
    text = "Connections a service has taken."
    yield _counter(
        "service_connections_total", text, ["service"], {(name,): s.connections_total for name, s in named.items()}
    )
    text = "Bytes a service has carried; in is from client to server."
    octets: Samples = {}
    for name, service in named.items():
        octets[name, "in"], octets[name, "out"] = service.bytes_in_total, service.bytes_out_total
    yield _counter("service_bytes_total", text, ["service", "direction"], octets)
    text = "Connections a service refused or ended, by reason."
    rejected: Samples = {
        (name, reason): count for name, service in named.items() for reason, count in service.rejected.items()
    }
    yield _counter("service_rejected_total", text, ["service", "reason"], rejected)


def _servers(servers: tuple[ServerView, ...]) -> Iterator[Metric]:
    named = {(server.pool, server.name): server for server in servers}
    labels = ["pool", "server"]
    up: Samples = {name: float(server.health != "down") for name, server in named.items()}
    yield _gauge("server_up", "0 while the probes of a server say down; 1 also without probes.", labels, up)
    yield _gauge(
        "server_admin_state",
        "1 for the administrative state a server is in, 0 for the others.",
        [*labels, "state"],
        {(*name, state): float(s.admin == state) for name, s in named.items() for state in AdminState},
    )
    text = "Weight the scheduler uses now; 0: no new connections."
    yield _gauge("server_effective_weight", text, labels, {name: s.effective_weight for name, s in named.items()})
    text = "1 while passive checking keeps a server out."
    out: Samples = {name: float(s.ejected_until_at is not None) for name, s in named.items()}
    yield _gauge("server_ejected", text, labels, out)
    text = "Times passive checking took a server out."
    yield _counter("server_ejections_total", text, labels, {name: s.ejections_total for name, s in named.items()})
    text = "Connections to a server that are established now."
    yield _gauge("server_active_connections", text, labels, {name: s.active for name, s in named.items()})
    text = "Connections to a server that were established."
    yield _counter("server_connections_total", text, labels, {n: s.connections_total for n, s in named.items()})
    text = "Attempts to connect to a server that failed."
    yield _counter(
        "server_connect_failures_total", text, labels, {n: s.connect_failures_total for n, s in named.items()}
    )
    text = "Bytes exchanged with a server; in is from client to server."
    octets: Samples = {}
    for name, server in named.items():
        octets[(*name, "in")], octets[(*name, "out")] = server.bytes_in_total, server.bytes_out_total
    yield _counter("server_bytes_total", text, [*labels, "direction"], octets)


def _probes(health: tuple[HealthView, ...]) -> Iterator[Metric]:
    """Two monitors of one type at one address share their labels: sums, and of two figures the worse one."""
    up: Samples = {}
    duration: Samples = {}
    total: Samples = {}
    failures: Samples = {}
    until: Samples = {}
    for target in health:
        key = (target.address, target.type, target.through or "")
        up[key] = min(up.get(key, 1.0), float(target.verdict == "up"))
        if target.last_duration_s is not None:
            duration[key] = max(duration.get(key, 0.0), target.last_duration_s)
        if target.certificate_until_at is not None:
            until[key] = min(until.get(key, target.certificate_until_at), target.certificate_until_at)
        total[key] = total.get(key, 0.0) + target.probes_total
        failures[key] = failures.get(key, 0.0) + target.failures_total
    labels = ["address", "type", "through"]
    yield _gauge("probe_up", "1 while the probes of a target say up.", labels, up)
    yield _gauge("probe_duration_seconds", "How long the last probe of a target took.", labels, duration)
    text = "End of the certificate that a probe over TLS saw last, in seconds since the Unix epoch."
    yield _gauge("probe_certificate_end_timestamp_seconds", text, labels, until)
    yield _counter("probes_total", "Probes that have finished.", labels, total)
    yield _counter("probe_failures_total", "Probes that have failed.", labels, failures)


def _vips(vips: tuple[VipView, ...]) -> Iterator[Metric]:
    named = {(vip.vip, vip.interface): vip for vip in vips}
    labels = ["vip", "interface"]
    yield _gauge("vip_owner", "1 while this node holds a VIP.", labels, {k: float(v.held) for k, v in named.items()})
    text = "1 while more than one node answers for a VIP."
    yield _gauge("vip_conflict", text, labels, {k: float(v.conflict) for k, v in named.items()})
    text = "Times another node was found to answer for a VIP that has an owner."
    yield _counter("vip_conflicts_total", text, labels, {k: v.conflicts_total for k, v in named.items()})
    text = "Times something else on this host deleted a VIP and it was put back."
    yield _counter("vip_restored_total", text, labels, {k: v.restored_total for k, v in named.items()})


def _vrrp(instances: tuple[VrrpView, ...]) -> Iterator[Metric]:
    """Advertisements that were ignored are counted by interface, for most of them name no instance."""
    named = {(instance.name,): instance for instance in instances}
    states: Samples = {(*n, state): float(it.state == state) for n, it in named.items() for state in VRRP_STATES}
    yield _gauge("vrrp_state", "1 for the state an instance is in, 0 for the others.", ["instance", "state"], states)
    text = "Priority an instance advertises now; 1: degraded."
    yield _gauge("vrrp_priority", text, ["instance"], {n: it.priority for n, it in named.items()})
    for name, text, attribute in (
        ("vrrp_transitions_total", "Changes of the state of an instance.", "transitions_total"),
        ("vrrp_packets_sent_total", "Advertisements sent.", "sent_total"),
        ("vrrp_packets_received_total", "Advertisements received and taken into account.", "received_total"),
        (
            "vrrp_conflict_total",
            "Advertisements of the instance's VRID with other addresses.",
            "conflicts_total",
        ),
    ):
        yield _counter(name, text, ["instance"], {n: getattr(it, attribute) for n, it in named.items()})
    text = "Advertisements that were ignored, by reason."
    invalid: Samples = {(it.interface, reason): n for it in instances for reason, n in it.invalid.items()}
    yield _counter("vrrp_packets_invalid_total", text, ["interface", "reason"], invalid)
