# SPDX-License-Identifier: Apache-2.0
"""The valid schema to the nouns of the model, defaults filled in. Invariant: a draft without findings can be built."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface

from fairlead.config.forms import parse_vip
from fairlead.config.schema import node as nodes
from fairlead.config.schema import pool as pools
from fairlead.config.schema import service as services
from fairlead.config.schema.document import Draft
from fairlead.config.schema.health import Dns, Exec, Grpc, Http, Https, Monitor, Rcode, Through, Tls, Udp
from fairlead.config.through import passages
from fairlead.model.configuration import ApiSettings, Configuration
from fairlead.model.net import Prefix, Protocol
from fairlead.model.pool import (
    AgentQuestion,
    DnsExpectation,
    ExecCommand,
    GrpcExpectation,
    HealthMonitor,
    HttpExpectation,
    MonitorType,
    PassiveCheck,
    Pool,
    TlsSettings,
    UdpExpectation,
)
from fairlead.model.service import Limits, Persistence, ProxyHeader, VirtualService
from fairlead.model.vip import Vip, VrrpInstance
from fairlead.model.xdp import XdpSettings

_IDLE_TIMEOUT_S = {Protocol.TCP: 350.0, Protocol.UDP: 60.0}


def build(draft: Draft, digest: str) -> Configuration:
    """Return the configuration that ``draft`` describes."""
    settings = draft.settings
    seed = settings.hash_seed
    return Configuration(
        services={name: _service(name, service) for name, service in draft.services.items()},
        pools={name: _pool(name, pool, draft) for name, pool in draft.pools.items()},
        vips=tuple(_vip(address, vip) for address, vip in draft.vips.items()),
        vrrp={name: _instance(name, instance) for name, instance in draft.vrrp.items()},
        xdp=_xdp(settings.xdp),
        api=ApiSettings(socket=settings.api.socket),
        workers=settings.proxy.workers,
        hash_seed=None if seed is None else hashlib.blake2b(seed.encode(), digest_size=16).digest(),
        digest=digest,
    )


def _xdp(part: nodes.Xdp) -> XdpSettings:
    return XdpSettings(
        interfaces=None if part.interfaces is None else tuple(part.interfaces),
        mode=part.mode,
        flow_table=part.flow_table,
        tunnel_source=part.tunnel_source,
        snat=None if part.snat is None else tuple(part.snat),
    )


def _service(name: str, service: services.Service) -> VirtualService:
    idle = service.idle_timeout
    return VirtualService(
        name=name,
        listen=tuple(service.listen),
        pool=service.pool,
        protocol=service.protocol,
        forwarding=service.forwarding,
        engine=service.engine,
        scheduler=service.scheduler,
        persistence=_persistence(service.persistence),
        idle_timeout_s=_IDLE_TIMEOUT_S[service.protocol] if idle is None else idle,
        connect_timeout_s=service.connect_timeout,
        retries=service.retries,
        half_close_timeout_s=service.half_close_timeout,
        transparent=service.transparent,
        accept_proxy=service.proxy_protocol.accept,
        send_proxy=service.proxy_protocol.send,
        allow=_prefixes(service.allow),
        deny=_prefixes(service.deny),
        limits=Limits(
            connections=service.limits.connections,
            connections_per_source=service.limits.connections_per_source,
            new_per_source=service.limits.new_per_source,
            prefix_v4=service.limits.prefix_v4,
            prefix_v6=service.limits.prefix_v6,
            queue=service.limits.queue,
            queue_timeout_s=service.limits.queue_timeout,
        ),
        when_all_down=service.when_all_down,
    )


def _persistence(part: services.Persistence | None) -> Persistence | None:
    return None if part is None else Persistence(part.timeout, prefix_v4=part.prefix_v4, prefix_v6=part.prefix_v6)


def _prefixes(interfaces: list[IPv4Interface | IPv6Interface]) -> tuple[Prefix, ...]:
    return tuple(interface.network for interface in interfaces)


def _vip(address: str, vip: nodes.Vip) -> Vip:
    interface = parse_vip(address)
    return Vip(interface.ip, interface.network.prefixlen, vip.interface, vip.owner)


def _instance(name: str, instance: nodes.Vrrp) -> VrrpInstance:
    return VrrpInstance(
        name=name,
        interface=instance.interface,
        vrid=instance.vrid,
        version=instance.version,
        priority=instance.priority,
        interval_cs=round(instance.advert_interval * 100),
        preempt=instance.preempt is not None,
        preempt_delay_s=0.0 if instance.preempt is None else instance.preempt.delay,
        peers=tuple(instance.peers),
        follow=tuple(instance.follow),
        checksum=instance.checksum,
        sync=instance.sync,
    )


def _pool(name: str, pool: pools.Pool, draft: Draft) -> Pool:
    return Pool(
        name=name,
        servers=tuple(pool.servers),
        monitors=tuple(each for monitor in pool.health for each in _monitors(monitor, name, draft)),
        slow_start_s=pool.slow_start,
        drain_timeout_s=pool.drain_timeout,
        quorum=pool.quorum,
        passive=_passive(pool.passive),
        agent=_agent(pool.agent),
    )


def _agent(part: pools.Agent | None) -> HealthMonitor | None:
    """Its verdict says only whether it answers: the first failure counts, so that it is told."""
    if part is None:
        return None
    return HealthMonitor(
        type=MonitorType.AGENT,
        interval_s=part.interval,
        down_interval_s=part.interval,
        timeout_s=part.timeout,
        rise=1,
        fall=1,
        port=part.port,
        address=part.address,
        agent=AgentQuestion(part.send or b""),
    )


def _passive(part: pools.Passive | None) -> PassiveCheck | None:
    return None if part is None else PassiveCheck(part.failures, part.interval, part.eject, part.max_ejected)


def _monitors(monitor: Monitor, pool: str, draft: Draft) -> list[HealthMonitor]:
    """The one that is written, or one for each service whose way it takes."""
    one = _monitor(monitor)
    if monitor.through is not Through.SERVICE:
        return [one]
    ways = dict.fromkeys(passages(monitor, pool, draft))
    return [replace(one, port=None, through=passage) for passage in ways]


def _monitor(monitor: Monitor) -> HealthMonitor:
    values = monitor.__dict__
    kind: MonitorType = values["type"]
    interval: float = values["interval"]
    down_interval: float | None = values["down_interval"]
    return HealthMonitor(
        type=kind,
        interval_s=interval,
        down_interval_s=interval if down_interval is None else down_interval,
        timeout_s=values["timeout"],
        rise=values["rise"],
        fall=values["fall"],
        jitter=values["jitter"] / 100,
        port=values.get("port"),
        address=values["address"],
        source=values["source"],
        send_proxy=values.get("send_proxy", ProxyHeader.NONE),
        http=_http(monitor) if isinstance(monitor, Http) else None,
        tls=_tls(monitor),
        udp=UdpExpectation(monitor.send, monitor.expect) if isinstance(monitor, Udp) else None,
        dns=_dns(monitor) if isinstance(monitor, Dns) else None,
        grpc=_grpc(monitor) if isinstance(monitor, Grpc) else None,
        exec=ExecCommand(tuple(monitor.command)) if isinstance(monitor, Exec) else None,
    )


def _http(monitor: Http) -> HttpExpectation:
    return HttpExpectation(
        method=monitor.method,
        path=monitor.path,
        host=monitor.host,
        headers=tuple(monitor.headers.items()),
        statuses=tuple(monitor.expect),
        body=monitor.body,
    )


def _dns(monitor: Dns) -> DnsExpectation:
    numbers = {rcode: number for number, rcode in enumerate(Rcode)}
    return DnsExpectation(monitor.query, monitor.record.value, tuple(numbers[rcode] for rcode in monitor.expect))


def _grpc(monitor: Grpc) -> GrpcExpectation:
    authority = monitor.tls.server_name if monitor.tls is not None else None
    return GrpcExpectation(monitor.service or "", authority)


def _tls(monitor: Monitor) -> TlsSettings | None:
    tls: Tls | None = monitor.__dict__.get("tls")
    if tls is None:
        return None
    name = tls.server_name
    if name is None and isinstance(monitor, Https) and monitor.host is not None:
        name = _name_of_host(monitor.host)
    return TlsSettings(
        verify=tls.verify,
        ca_file=tls.ca_file,
        server_name=name,
        certificate=tls.certificate,
        key=tls.certificate_key,
        expiry_warning_s=tls.expiry_warning,
    )


def _name_of_host(host: str) -> str | None:
    """The name in a Host header, or None for an address: SNI carries names only (RFC 6066 section 3)."""
    name = host.partition(":")[0]
    return None if host.startswith("[") or not re.search("[A-Za-z]", name) else name
