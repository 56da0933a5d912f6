# SPDX-License-Identifier: Apache-2.0
"""Every type of monitor with its keys, from the file to the model."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fairlead.config.schema.health import MONITORS, Rcode, Record
from fairlead.model.pool import (
    AgentQuestion,
    DnsExpectation,
    ExecCommand,
    GrpcExpectation,
    HealthMonitor,
    MonitorType,
    TlsSettings,
    UdpExpectation,
)
from fairlead.model.service import ProxyHeader
from fairlead.probes.registry import ATTEMPTS
from fairlead.protocols.dns import RCODES, RECORD_TYPES
from support.configs import SERVICE, assert_problem, configuration, loaded, marked


def monitor(keys: str, rest: str = "") -> HealthMonitor:
    """The one monitor of a pool with ``health: keys``."""
    (found,) = (
        configuration(f"pools: {{p: {{servers: [192.0.2.1:80], health: {keys}}}}}{SERVICE}{rest}").pools["p"].monitors
    )
    return found


def test_each_type_that_a_file_may_name_has_an_attempt() -> None:
    assert {MonitorType(name) for name in MONITORS} <= ATTEMPTS.keys()


def test_the_words_of_dns_are_those_of_the_protocol() -> None:
    assert list(RECORD_TYPES) == list(Record)
    assert dict(enumerate(Rcode)) == RCODES


def test_udp_sends_text_or_bytes() -> None:
    assert monitor("{type: udp, send: ping}").udp == UdpExpectation(b"ping", None)
    found = monitor("{type: udp, send: 'hex:00 ff 0D0a', expect: 'hex:00'}")
    assert found.udp == UdpExpectation(b"\x00\xff\r\n", b"\x00")


def test_dns() -> None:
    assert monitor("{type: dns, query: example.org}").dns == DnsExpectation("example.org", "A", (0,))
    found = monitor("{type: dns, query: example.org, record: AAAA, expect: [NOERROR, NXDOMAIN]}")
    assert found.dns == DnsExpectation("example.org", "AAAA", (0, 3))


def test_icmp_takes_an_address_and_a_source() -> None:
    found = monitor("{type: icmp, address: 192.0.2.7, source: 192.0.2.200}")
    assert (found.type, found.address, found.source) == (
        MonitorType.ICMP,
        ip_address("192.0.2.7"),
        ip_address("192.0.2.200"),
    )


def test_grpc_in_the_clear_and_over_tls() -> None:
    plain = monitor("grpc")
    assert (plain.grpc, plain.tls) == (GrpcExpectation(), None)
    found = monitor("{type: grpc, service: shop.Cart, tls: {server_name: cart.test, verify: true}}")
    assert found.grpc == GrpcExpectation("shop.Cart", "cart.test")
    assert found.tls == TlsSettings(verify=True, server_name="cart.test")


def test_tls_with_a_certificate_of_ours_and_a_warning_of_theirs() -> None:
    found = monitor(
        "{type: https, host: 'www.test:8443', tls: {verify: true, ca_file: /ca, certificate: /c, certificate_key: /k, "
        "expiry_warning: 336h}}"
    )
    assert found.tls == TlsSettings(True, "/ca", "www.test", "/c", "/k", 14 * 86400.0)


def test_tcp_types_can_begin_with_a_proxy_header() -> None:
    assert monitor("{type: http, send_proxy: v1}").send_proxy is ProxyHeader.V1
    assert monitor("{type: tls, send_proxy: v2}").send_proxy is ProxyHeader.V2
    assert monitor("http").send_proxy is ProxyHeader.NONE


def test_exec_needs_to_be_allowed() -> None:
    found = monitor("{type: exec, command: [/bin/test, -e, /x]}", "health: {allow_exec: true}\n")
    assert found.exec == ExecCommand(("/bin/test", "-e", "/x"))


ROWS = [
    ("health: {type: §exec, command: [/bin/true]}", "health.type", "`health: {allow_exec: true}` at the top level"),
    ("health: {type: udp, send: §'hex:0'}", "health.send", "pairs of hexadecimal digits"),
    ("health: {type: udp, send: §'hex:'}", "health.send", "pairs of hexadecimal digits"),
    ("health: {type: udp, send: §''}", "health.send", "1 to 1024 characters"),
    ("health: {type: dns, query: §'a b'}", "health.query", "a host name"),
    ("health: {type: dns, query: a.test, record: §a}", "health.record", "did you mean `A`?"),
    ("health: {type: dns, query: a.test, expect: §NXDOMAN}", "health.expect", "did you mean `NXDOMAIN`?"),
    ("health: {type: https, tls: {certificate_key: §/k}}", "health.tls.certificate_key", "is the key of no"),
    ("health: {type: tcp, source: §'2001:db8::1'}", "health.source", "of the other address family"),
    ("health: {type: tcp, address: '2001:db8::1', source: §192.0.2.7}", "health.source", "of the other address family"),
]


@pytest.mark.parametrize(("keys", "path", "said"), ROWS, ids=[row[0] for row in ROWS])
def test_what_a_monitor_refuses(keys: str, path: str, said: str) -> None:
    assert_problem(f"pools:\n  p: {{servers: [192.0.2.1:80], {keys}}}{SERVICE}", f"pools.p.{path}", said)


def test_a_program_is_named_by_its_absolute_path() -> None:
    text = "pools: {p: {servers: [192.0.2.1:80], health: {type: exec, command: [§true]}}}" + SERVICE
    assert_problem(text + "health: {allow_exec: true}\n", "pools.p.health.command[0]", "absolute path")


def test_authorities_without_verification_are_odd() -> None:
    clean, places = marked("pools: {p: {servers: [192.0.2.1:80], health: {type: tls, tls: {§ca_file: /ca}}}}" + SERVICE)
    (found,) = loaded(clean).warnings
    assert (found.line, found.column) == places[0]
    assert "no effect without `verify: true`" in found.message


def test_an_agent_is_a_monitor_beside_health() -> None:
    text = "pools: {p: {servers: [192.0.2.1:80], agent: {port: 9999, interval: 5s, send: 'hex:610a'}}}" + SERVICE
    found = configuration(text).pools["p"]
    assert found.agent == HealthMonitor(MonitorType.AGENT, 5.0, 5.0, 1.0, 1, 1, port=9999, agent=AgentQuestion(b"a\n"))
    assert [it.type for it in found.probes] == [MonitorType.TCP, MonitorType.AGENT]
    assert_problem("pools: {p: {servers: [192.0.2.1:80], health: §agent}}" + SERVICE, "pools.p.health", "not one of")
