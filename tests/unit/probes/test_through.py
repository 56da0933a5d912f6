# SPDX-License-Identifier: Apache-2.0
"""Probes that are to take the way of a service: never another, and what keeps them from it is this node's trouble."""

from __future__ import annotations

import socket
import subprocess
import sys
from ipaddress import ip_address
from typing import Any

import pytest

from fairlead.errors import OffLink, UnsupportedFeature
from fairlead.model.health import ProbeResult, ProbeTarget, Way
from fairlead.model.net import Endpoint, Protocol
from fairlead.model.pool import HealthMonitor, HttpExpectation, MonitorType, UdpExpectation
from fairlead.model.reasons import DownReason
from fairlead.model.service import Forwarding, Passage, ProxyHeader
from fairlead.probes.outcome import ProbeFailed
from fairlead.probes.registry import probe
from fairlead.probes.stream import destination, open_socket
from support.servers import closing, resetting, serving, silent
from unit.probes.test_namespace import NO_PRIVILEGE

VIP = ip_address("192.0.2.9")


def target(port: int, kind: MonitorType = MonitorType.TCP, mark: int = 0, **monitor: Any) -> ProbeTarget:
    """Loopback, as a server behind a VIP."""
    passage = Passage(Endpoint(VIP, port), Protocol.TCP, Forwarding.TUNNEL)
    values: dict[str, Any] = {"timeout_s": 0.3, "through": passage, **monitor}
    return ProbeTarget(Endpoint(ip_address("127.0.0.1"), port), HealthMonitor(kind, **values), mark)


class Counted:
    """Ways on which the one attempt sends so many packets."""

    def __init__(self, packets: int) -> None:
        self.asked: list[Way] = []
        self._counts = [packets, 0]

    def mark_of(self, way: Way) -> int:
        self.asked.append(way)
        return 7

    def packets_of(self, way: Way) -> int:
        assert self.asked == [way]
        return self._counts.pop()


class Broken:
    """No ways."""

    def mark_of(self, way: Way) -> int:
        raise UnsupportedFeature(f"probing through {way.passage.vip}", "give this node a kernel")

    def packets_of(self, way: Way) -> int:
        raise AssertionError(way)


class Short:
    """Ways that do not get as far as the server."""

    def mark_of(self, way: Way) -> int:
        raise OffLink(f"probing through {way.passage.vip}", f"{way.server} is behind a gateway: move it")

    def packets_of(self, way: Way) -> int:
        raise AssertionError(way)


def told(result: ProbeResult) -> tuple[DownReason | None, str]:
    return result.reason, result.detail


@pytest.mark.root
async def test_a_probe_that_took_the_way_counts() -> None:
    async with serving(closing) as port:
        ways = Counted(packets=3)
        assert told(await probe(target(port), ways)) == (None, f"through 192.0.2.9:{port}: connected")
        assert ways.asked == [target(port).way]


@pytest.mark.root
async def test_an_answer_that_came_another_way_does_not() -> None:
    async with serving(closing) as port:
        reason, detail = told(await probe(target(port), Counted(packets=0)))
    assert reason is DownReason.LOCAL_ERROR
    assert "no packet of the probe took the way of the service" in detail
    reason, _ = told(await probe(target(port), Counted(packets=0)))
    assert reason is DownReason.LOCAL_ERROR, "nor is the server blamed for a refusal"
    assert (await probe(target(port), Counted(packets=3))).reason is DownReason.REFUSED


@pytest.mark.root
async def test_silence_is_silence_though_nothing_left_this_node() -> None:
    """Whose link address nobody knows, for one."""
    async with serving(silent) as port:
        result = await probe(target(port, MonitorType.HTTP, http=HttpExpectation()), Counted(packets=0))
    assert result.reason is DownReason.TIMEOUT


async def test_without_a_way_nothing_is_sent() -> None:
    async with serving(resetting) as port:
        reason, detail = told(await probe(target(port), Broken()))
        assert reason is DownReason.LOCAL_ERROR
        assert "give this node a kernel" in detail
        reason, detail = told(await probe(target(port)))
    assert (reason, "nothing here can send by the way" in detail) == (DownReason.LOCAL_ERROR, True)


@pytest.mark.parametrize("kind", [MonitorType.TCP, MonitorType.UDP])
async def test_a_way_that_is_too_short_is_how_the_network_is_and_not_this_nodes_failure(kind: MonitorType) -> None:
    """So it counts, and by the same name whatever the probe speaks."""
    expected: dict[str, Any] = {"udp": UdpExpectation(b"x")} if kind is MonitorType.UDP else {}
    result = await probe(target(9, kind, **expected), Short())
    assert told(result) == (DownReason.OFF_LINK, "through 192.0.2.9:9: 127.0.0.1 is behind a gateway: move it")


def test_a_target_without_its_mark_has_no_destination() -> None:
    with pytest.raises(ProbeFailed) as caught:
        destination(target(80))
    assert caught.value.reason is DownReason.LOCAL_ERROR


def test_the_server_hears_the_name_of_the_vip() -> None:
    to = destination(target(8080, mark=7, send_proxy=ProxyHeader.V2))
    assert (to.host, to.port, to.name, to.mark) == ("127.0.0.1", 8080, "192.0.2.9", 7)


def test_the_mark_is_no_part_of_what_a_target_is() -> None:
    assert target(80, mark=7) == target(80)
    assert hash(target(80, mark=7)) == hash(target(80))
    assert target(80).place == "127.0.0.1:80 through 192.0.2.9:80"


@pytest.mark.root
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_every_marked_socket_has_a_port_of_its_own(kind: socket.SocketKind) -> None:
    """Answers of one VIP are told apart by nothing else; connect() would share the few there are."""
    to = destination(target(9, mark=0x464C0001))
    held = [open_socket(to, kind) for _ in range(200)]
    try:
        for sock in held:
            assert sock.getsockopt(socket.SOL_SOCKET, 36) == 0x464C0001
        ports = [sock.getsockname()[1] for sock in held]
        assert len(set(ports)) == len(ports)
        assert 0 not in ports
    finally:
        for sock in held:
            sock.close()


@pytest.mark.root
@pytest.mark.parametrize(("kind", "extra"), [(MonitorType.TCP, {}), (MonitorType.UDP, {"udp": UdpExpectation(b"x")})])
async def test_a_probe_is_not_sent_from_the_vip(kind: MonitorType, extra: dict[str, Any]) -> None:
    """The server would take such packets for its own."""
    passage = Passage(Endpoint(ip_address("127.0.0.1"), 9), Protocol.TCP, Forwarding.TUNNEL)
    result = await probe(target(9, kind, through=passage, **extra), Counted(packets=1))
    assert result.reason is DownReason.LOCAL_ERROR
    assert "give it one, or set `source`" in result.detail


RIGHTS = """
import asyncio, sys
sys.path[:0] = sys.argv[1:]
from unit.probes.test_through import Counted, probe, target
result = asyncio.run(probe(target(9), Counted(packets=1)))
print(result.reason, result.detail, sep="|")
"""


@pytest.mark.root
def test_without_the_right_to_mark_packets_it_says_so() -> None:
    places = [part for part in sys.path if part]
    done = subprocess.run(
        [*NO_PRIVILEGE, sys.executable, "-c", RIGHTS, *places], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reason, detail = done.stdout.strip().split("|")
    assert reason == "local_error"
    assert detail.endswith("marking packets, so that they take the way of the service, needs CAP_NET_ADMIN")
