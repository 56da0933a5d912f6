# SPDX-License-Identifier: Apache-2.0
"""``through: service``: one monitor for each service whose way can be taken, and clear words where there is none."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fairlead.model.net import Endpoint, Protocol
from fairlead.model.pool import MonitorType
from fairlead.model.service import Forwarding, Passage
from support.configs import assert_problem, configuration, loaded, problems

SERVICES = """
services:
  web: {listen: ["192.0.2.9:80", "192.0.2.8:80"], pool: p, forwarding: tunnel}
  near: {listen: 192.0.2.10:80, pool: p, forwarding: dsr}
  quic: {listen: 192.0.2.9:80, protocol: udp, pool: p, forwarding: tunnel}
  nat: {listen: 192.0.2.11:80, pool: p, forwarding: nat}
  proxied: {listen: 192.0.2.12:80, pool: p}
  other: {listen: 192.0.2.13:80, pool: q, forwarding: tunnel}
"""
POOLS = """
pools:
  p: {{servers: ["10.0.0.1:80", "10.0.0.2:80"], health: {health}}}
  q: {{servers: ["10.0.0.1:80"]}}
"""


def passage(text: str, forwarding: Forwarding, protocol: Protocol = Protocol.TCP, port: int = 80) -> Passage:
    return Passage(Endpoint(ip_address(text), port), protocol, forwarding)


WEB, NEAR = passage("192.0.2.9", Forwarding.TUNNEL), passage("192.0.2.10", Forwarding.DSR)
QUIC = passage("192.0.2.9", Forwarding.TUNNEL, Protocol.UDP)


def ways(health: str) -> list[tuple[MonitorType, Passage | None]]:
    """Type and way of each monitor of the pool."""
    found = loaded(SERVICES + POOLS.format(health=health)).configuration.pools["p"].monitors
    return [(it.type, it.through) for it in found]


@pytest.mark.parametrize("kind", ["tcp", "tls", "http", "https", "grpc"])
def test_each_service_that_leaves_packets_as_they_are_is_a_way(kind: str) -> None:
    assert ways(f"{{type: {kind}, through: service}}") == [(MonitorType(kind), WEB), (MonitorType(kind), NEAR)]


@pytest.mark.parametrize("keys", ["type: udp, send: x, expect: y", "type: dns, query: example.org"])
def test_the_protocol_must_fit(keys: str) -> None:
    assert [way for _, way in ways(f"{{{keys}, through: service}}")] == [QUIC]


def test_others_of_the_list_stay_what_they_are() -> None:
    assert ways("[icmp, {type: http, through: service}, {type: tcp, through: direct}]") == [
        (MonitorType.ICMP, None),
        (MonitorType.HTTP, WEB),
        (MonitorType.HTTP, NEAR),
        (MonitorType.TCP, None),
    ]


def test_a_port_of_the_monitor_is_a_port_of_the_vip() -> None:
    (one, _) = (
        loaded(SERVICES + POOLS.format(health="{type: tcp, port: 81, through: service}"))
        .configuration.pools["p"]
        .monitors
    )
    assert (one.port, one.through) == (None, passage("192.0.2.9", Forwarding.TUNNEL, port=81))


def test_the_first_port_of_a_range_is_probed() -> None:
    text = """
services: {s: {listen: "192.0.2.9:8000-8099", pool: p, forwarding: tunnel}}
pools: {p: {servers: ["10.0.0.1"], health: {type: tcp, through: service}}}
"""
    (one,) = configuration(text).pools["p"].monitors
    assert one.through == passage("192.0.2.9", Forwarding.TUNNEL, port=8000)


ANY = 'services: {s: {listen: "192.0.2.9:*", pool: p, forwarding: dsr}}\n'


def test_a_service_of_every_port_needs_one() -> None:
    text = ANY + "pools: {p: {servers: ['10.0.0.1'], health: {type: tcp, through: §service}}}"
    assert_problem(text, "pools.p.health.through", "needs `port`, because service `s` has every port")
    text = ANY + "pools: {p: {servers: ['10.0.0.1'], health: {type: tcp, port: 80, through: service}}}"
    (one,) = configuration(text).pools["p"].monitors
    assert one.through == passage("192.0.2.9", Forwarding.DSR)


def refused(health: str, path: str, said: str, services: str = SERVICES) -> None:
    assert_problem(services + POOLS.format(health=health), f"pools.p.health.{path}", said)


def test_what_has_no_way_is_refused() -> None:
    only = "services: {s: {listen: 192.0.2.9:80, pool: p, forwarding: nat}, t: {listen: 192.0.2.9:81, pool: q}}"
    refused("{type: http, through: §service}", "through", "no service with `protocol: tcp` and `forwarding: dsr`", only)
    udp = SERVICES.replace("  quic:", "  #")
    refused("{type: udp, send: x, through: §service}", "through", "no service with `protocol: udp`", udp)


def test_types_without_ports_have_no_way() -> None:
    refused("{type: icmp, through: §service}", "through", "`icmp` cannot take a service's way")
    allowed = "health: {allow_exec: true}" + SERVICES
    refused("{type: exec, command: [/bin/true], through: §service}", "through", "`exec` cannot take", allowed)


def test_another_address_is_no_way_of_the_service() -> None:
    refused("{type: tcp, address: §10.0.0.9, through: service}", "address", "probes go where the service's packets go")


def test_silence_over_another_family_would_always_pass() -> None:
    text = """
services: {s: {listen: "[2001:db8::9]:53", protocol: udp, pool: p, forwarding: tunnel}}
pools: {p: {servers: ["10.0.0.1:53"], health: {type: udp, send: x, through: §service}}}
"""
    assert_problem(text, "pools.p.health.through", "needs `expect`: server 10.0.0.1:53 is not of the address family")
    clean = text.replace("§", "").replace("send: x", "send: x, expect: y")
    assert configuration(clean).pools["p"].monitors[0].through is not None


def test_a_service_that_is_wrong_itself_is_not_missed() -> None:
    text = SERVICES.replace("pool: p, forwarding", "pool: p, forwading") + POOLS.format(
        health="{type: tcp, through: service}"
    )
    assert {p.path.rpartition(".")[2] for p in problems(text)} == {"forwading"}
