# SPDX-License-Identifier: Apache-2.0
"""The ``udp``, ``dns`` and ``icmp`` probes against real peers: sockets of the test, dnsmasq, and the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_address
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.model.health import ProbeTarget
from fairlead.model.pool import DnsExpectation, MonitorType, UdpExpectation
from fairlead.model.reasons import DownReason
from fairlead.probes.registry import probe
from fairlead.protocols.icmp import echo_request
from support.processes import free_port
from support.servers import target_at
from support.wait import until

Answer = Callable[[bytes], list[bytes]]


class _Responder(asyncio.DatagramProtocol):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for answer in self._answer(data):
            self._transport.sendto(answer, addr)


@contextlib.asynccontextmanager
async def responding(answer: Answer, host: str = "127.0.0.1") -> AsyncIterator[int]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Responder(answer), local_addr=(host, 0)
    )
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_udp_an_expected_answer_passes(host: str) -> None:
    async with responding(lambda data: [b"<" + data + b">"], host) as port:
        result = await probe(
            target_at(port, host, type=MonitorType.UDP, timeout_s=2.0, udp=UdpExpectation(b"ping", b"ping>"))
        )
    assert (result.passed, result.detail) == (True, 'answered "<ping>"')


async def test_udp_another_answer_fails() -> None:
    async with responding(lambda _: [b"\x00no", b"pong"]) as port:
        result = await probe(target_at(port, type=MonitorType.UDP, timeout_s=2.0, udp=UdpExpectation(b"ping", b"pong")))
    assert (result.reason, result.detail) == (DownReason.BAD_BODY, 'answered "\\x00no", without "pong"')


@pytest.mark.parametrize(("expect", "passes"), [(None, True), (b"pong", False)])
async def test_udp_silence_passes_only_if_nothing_is_expected(expect: bytes | None, passes: bool) -> None:
    async with responding(lambda _: []) as port:
        result = await probe(target_at(port, type=MonitorType.UDP, timeout_s=0.2, udp=UdpExpectation(b"ping", expect)))
    assert result.passed is passes
    assert result.detail == ("no answer and no error" if passes else "answer took longer than 0.2 s")
    assert result.duration_s >= 0.2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("expect", [None, b"pong"])
async def test_udp_a_closed_port_refuses(host: str, expect: bytes | None) -> None:
    """By the kernel's ICMP port unreachable."""
    with socket.socket(socket.AF_INET6 if host == "::1" else socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((host, 0))
        port = other.getsockname()[1]
    result = await probe(
        target_at(port, host, type=MonitorType.UDP, timeout_s=2.0, udp=UdpExpectation(b"ping", expect))
    )
    assert (result.reason, result.detail) == (DownReason.REFUSED, "answer: connection refused")


async def test_udp_answers_of_strangers_do_not_count() -> None:
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        server.setblocking(False)
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        target = target_at(port, type=MonitorType.UDP, timeout_s=0.2, udp=UdpExpectation(b"ping", b"pong"))
        probing = asyncio.create_task(probe(target))
        _, prober = await loop.sock_recvfrom(server, 100)
        stranger.sendto(b"pong", prober)
        assert (await probing).reason is DownReason.TIMEOUT


@pytest.fixture(scope="module")
def dnsmasq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real DNS server that knows example.org; its port."""
    directory = tmp_path_factory.mktemp("dnsmasq")
    port = free_port()
    options = ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user="]
    options += [f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", f"--pid-file={directory}/pid"]
    options += ["--address=/example.org/192.0.2.1", "--local=/test/"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["/usr/sbin/dnsmasq", *options], stderr=log)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(0.05)
            s.connect(("127.0.0.1", port))

            def answers() -> bool:
                assert process.poll() is None, (directory / "log").read_text()
                with contextlib.suppress(OSError):
                    s.send(bytes.fromhex("0001010000010000000000000000020001"))
                    return bool(s.recv(512))
                return False

            until(answers, 10, "dnsmasq answers")
        yield port
    finally:
        process.kill()
        process.wait()


def dns_target(
    port: int, query: str, record: str = "A", rcodes: tuple[int, ...] = (0,), timeout_s: float = 2.0
) -> ProbeTarget:
    return target_at(port, type=MonitorType.DNS, timeout_s=timeout_s, dns=DnsExpectation(query, record, rcodes))


async def test_dns_a_real_server_passes(dnsmasq: int) -> None:
    result = await probe(dns_target(dnsmasq, "Example.Org"))
    assert (result.passed, result.detail) == (True, "NOERROR, 1 answers")


async def test_dns_the_response_code_decides(dnsmasq: int) -> None:
    missing = await probe(dns_target(dnsmasq, "missing.test"))
    assert (missing.reason, missing.detail) == (DownReason.BAD_STATUS, "NXDOMAIN, 0 answers, expected NOERROR")
    assert (await probe(dns_target(dnsmasq, "missing.test", rcodes=(0, 3)))).passed


async def test_dns_a_dead_server_refuses() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    assert (await probe(dns_target(port, "example.org"))).reason is DownReason.REFUSED


async def test_dns_forged_and_late_answers_do_not_count() -> None:
    def answer(query: bytes) -> list[bytes]:
        good = query[:2] + b"\x81\x80" + query[4:]
        return [bytes([query[0] ^ 1]) + good[1:3] + b"\x82" + good[4:], b"", good]

    async with responding(answer) as port:
        result = await probe(dns_target(port, "example.org"))
    assert (result.passed, result.detail) == (True, "NOERROR, 0 answers")


async def test_dns_garbage_is_malformed() -> None:
    async with responding(lambda query: [query[:2] + b"\x81"]) as port:
        result = await probe(dns_target(port, "example.org"))
    assert (result.reason, result.detail) == (DownReason.MALFORMED, "DNS answer: shorter than a DNS header")


@pytest.mark.parametrize(("query", "record"), [("a..b", "A"), ("\u00e4", "A"), ("a", "BOGUS")])
async def test_dns_a_query_that_cannot_be_sent_is_an_error_of_this_node(query: str, record: str) -> None:
    result = await probe(dns_target(53, query, record))
    assert result.reason is DownReason.LOCAL_ERROR
    assert result.detail.startswith("the query cannot be sent: ")


@settings(max_examples=50, deadline=None)
@given(tail=st.binary(max_size=100), keep=st.integers(0, 30))
def test_dns_hostile_answers_give_a_result(tail: bytes, keep: int) -> None:
    async def main() -> None:
        async with responding(lambda query: [query[:keep] + tail]) as port:
            result = await probe(dns_target(port, "example.org", timeout_s=0.05))
            assert not result.detail.startswith("this node")
            assert result.detail.isprintable()

    asyncio.run(main())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_icmp_this_host_answers(address: str) -> None:
    result = await probe(target_at(0, address, type=MonitorType.ICMP, timeout_s=2.0))
    assert (result.passed, result.detail) == (True, "echo reply")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_icmp_from_a_source_address(address: str) -> None:
    result = await probe(target_at(0, address, type=MonitorType.ICMP, timeout_s=2.0, source=ip_address(address)))
    assert result.passed


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_icmp_replies_to_others_do_not_count(address: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fairlead.probes.icmp.echo_request", lambda version, _, __: echo_request(version, 1, b"other"))
        result = await probe(target_at(0, address, type=MonitorType.ICMP, timeout_s=0.2))
    assert result.reason is DownReason.TIMEOUT


@pytest.mark.parametrize("kind", [MonitorType.UDP, MonitorType.DNS, MonitorType.ICMP])
async def test_what_this_node_may_not_send_is_an_error_of_this_node(kind: MonitorType) -> None:
    result = await probe(target_at(53, "255.255.255.255", type=kind, timeout_s=2.0))
    assert result.reason is DownReason.LOCAL_ERROR
    assert "this node: connect: permission denied" in result.detail
