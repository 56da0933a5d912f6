# SPDX-License-Identifier: Apache-2.0
"""Forwarding: nat with real traffic: the servers' gateway is the balancer, and they see the clients' own addresses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from support.asking import avoids, echo_asked, http_from, udp_ask
from support.crossing import Crossing, Daemon, crossing
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]

NAT = """
services:
  web: {listen: 10.9.0.100:80, pool: web, forwarding: nat}
  web6: {listen: "[fd00:9::100]:80", pool: web6, forwarding: nat}
  dns: {listen: 10.9.0.100:53, protocol: udp, pool: dns, forwarding: nat}
  dns6: {listen: "[fd00:9::100]:53", protocol: udp, pool: dns6, forwarding: nat}
pools:
  web:
    servers: ["10.0.1.10:8080", "10.0.1.11:8080", "10.0.1.12:8080"]
    health: &h {type: http, path: /, interval: 200ms, timeout: 150ms, rise: 1, fall: 1}
  web6: {servers: ["[fd00:1::a]:8080", "[fd00:1::b]:8080", "[fd00:1::c]:8080"], health: *h}
  dns:
    servers: ["10.0.1.10:53", "10.0.1.11:53"]
    health: &u {type: udp, send: ping, expect: pong, interval: 200ms, timeout: 150ms, rise: 1, fall: 1}
  dns6: {servers: ["[fd00:1::a]:53", "[fd00:1::b]:53"], health: *u}
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
  fd00:9::100/64: {interface: eth0, owner: static}
xdp: {flow_table: 4096}
"""
WEB = ("http://10.9.0.100", "http://[fd00:9::100]")


@contextmanager
def running(directory: Path) -> Iterator[tuple[Crossing, Daemon]]:
    with crossing(directory) as bed:
        bed.add_servers(10, 11, 12)
        bed.ready()
        with Daemon(bed.balancer, directory, NAT) as daemon:
            daemon.wait_until_up()
            yield bed, daemon


@pytest.fixture(scope="module")
def shared(directory: Path) -> Iterator[tuple[Crossing, Daemon]]:
    """For tests that leave everything as it was."""
    with running(directory) as made:
        yield made


@pytest.fixture
def bed(shared: tuple[Crossing, Daemon]) -> Crossing:
    return shared[0]


@pytest.fixture
def daemon(shared: tuple[Crossing, Daemon]) -> Daemon:
    return shared[1]


@pytest.fixture
def own(runtime: Path) -> Iterator[tuple[Crossing, Daemon]]:
    """For tests that end or change something."""
    with running(runtime) as made:
        yield made


class Counted(NamedTuple):
    """Of one service, and of its servers together."""

    connections: int
    of_servers: int
    bytes_in: int
    bytes_out: int


def counted(daemon: Daemon, service: str) -> Counted:
    it = next(it for it in daemon.get("services") if it["name"] == service)
    of_servers = sum(server["connections_total"] for server in it["servers"])
    return Counted(it["connections_total"], of_servers, it["bytes_in_total"], it["bytes_out_total"])


def test_clients_reach_all_servers_which_see_the_clients_themselves(bed: Crossing, daemon: Daemon) -> None:
    before = counted(daemon, "web")
    for url in WEB:
        answers = {bed.curl(f"{url}/") for _ in range(40)}
        assert {answer.split()[0] for answer in answers} == {"s10", "s11", "s12"}
        assert {answer.split()[1] for answer in answers} == {"10.9.0.2" if "." in url else "fd00:9::2"}
    after = counted(daemon, "web")
    assert after.connections - before.connections == after.of_servers - before.of_servers == 40
    assert after.bytes_in > before.bytes_in
    assert after.bytes_out > before.bytes_out


def test_datagrams_are_answered(bed: Crossing, daemon: Daemon) -> None:
    for vip in ("10.9.0.100", "fd00:9::100"):
        answers = {udp_ask(bed.client, vip, 53, b"hello") for _ in range(30)}
        assert answers == {b"s10 hello", b"s11 hello"}


@pytest.mark.parametrize("url", WEB)
def test_ten_megabytes_arrive_as_they_were_sent(bed: Crossing, runtime: Path, url: str) -> None:
    content = os.urandom(10 << 20)
    for server in bed.servers.values():
        (bed.directory / server.name / "data" / "big").write_bytes(content)
    target = runtime / "got"
    bed.curl(f"{url}/data/big", "-o", str(target))
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_a_large_datagram_comes_in_fragments_and_goes_on(bed: Crossing, daemon: Daemon) -> None:
    payload = os.urandom(4000)
    for vip in ("10.9.0.100", "fd00:9::100"):
        assert udp_ask(bed.client, vip, 53, payload).split(b" ", 1)[1] == payload


def test_the_vip_answers_echo_requests(bed: Crossing, daemon: Daemon) -> None:
    before = daemon.metric("xdp_packets_total", fate="sent_echo")
    for vip in ("10.9.0.100", "fd00:9::100"):
        assert echo_asked(bed.client, vip)
    until(lambda: daemon.metric("xdp_packets_total", fate="sent_echo") == before + 2, 10, "they are counted")


@pytest.mark.parametrize(("vip", "client"), [("10.9.0.100", "10.9.0.2"), ("fd00:9::100", "fd00:9::2")])
def test_no_packet_is_lost_to_a_client_whose_link_address_is_not_known(
    bed: Crossing, daemon: Daemon, vip: str, client: str
) -> None:
    """As of every client, at a node that has just taken the VIP over."""
    before = bed.counters().get("PASS_UNRESOLVED", 0)

    def met() -> bool:
        bed.balancer.ip("neigh", "del", client, "dev", "eth0", check=False)
        assert udp_ask(bed.client, vip, 53, b"hello") != b"", bed.counters()
        return bed.counters().get("PASS_UNRESOLVED", 0) > before

    until(met, 10, "the client was not known")
    assert "PASS_RESOLVING" not in bed.counters()


def test_health_checks_and_clients_may_use_the_same_address_at_once(bed: Crossing, daemon: Daemon) -> None:
    """Replies to the balancer itself are never rewritten."""
    before = {it["address"]: it["failures_total"] for it in daemon.get("health")}
    for _ in range(20):
        bed.curl(f"{WEB[0]}/")
    assert {it["address"]: it["failures_total"] for it in daemon.get("health")} == before
    until(lambda: daemon.metric("xdp_packets_total", fate="pass_own") > 0, 10, "a probe's answer is counted")


def test_a_server_may_be_talked_to_directly(bed: Crossing, daemon: Daemon) -> None:
    bed.client.ip("route", "add", "10.0.1.0/24", "via", "10.9.0.1")
    for _ in range(5):
        assert bed.curl("http://10.0.1.10:8080/").startswith("s10 10.9.0.2")
        bed.curl(f"{WEB[0]}/")
    bed.client.ip("route", "del", "10.0.1.0/24")


def test_a_dead_server_loses_its_flows_alone_and_gets_only_those_back(own: tuple[Crossing, Daemon]) -> None:
    bed, daemon = own

    def where() -> dict[int, str]:
        return {port: http_from(bed.client, port, "10.9.0.100", 80).split()[0] for port in range(20000, 20040)}

    before = where()
    bed.servers["s11"].kill()
    until(lambda: daemon.server("web/10.0.1.11:8080")["health"] == "down", 10, "the dead one is noticed")
    theirs = [port for port, name in before.items() if name == "s11"]
    until(lambda: avoids(bed.client, theirs, "10.9.0.100", 80, "s11"), 10, "its flows go elsewhere")
    during = where()
    assert {port for port in before if before[port] != during[port]} == {p for p in before if before[p] == "s11"}
    bed.servers["s11"].start(daemon.file.parent)
    until(lambda: daemon.server("web/10.0.1.11:8080")["health"] == "up", 10, "it is back")
    until(lambda: where() == before, 10, "they come back, and no others")


def test_connections_are_listed(own: tuple[Crossing, Daemon]) -> None:
    bed, daemon = own
    for url in WEB:
        bed.curl(f"{url}/")
    rows = daemon.get("connections")["flows"]
    assert {row["service"] for row in rows} == {"web", "web6"}
    assert all(row["client"].startswith(("10.9.0.2:", "[fd00:9::2]:")) for row in rows)
    assert daemon.get("connections?service=web6")["flows"][0]["vip"] == "[fd00:9::100]:80"


def test_it_leaves_nothing_behind(own: tuple[Crossing, Daemon]) -> None:
    bed, daemon = own
    bed.curl(f"{WEB[0]}/")
    daemon.end()
    assert "xdp" not in bed.balancer.ip("link", "show", "eth0")
    assert not bed.balancer.holds("10.9.0.100/24")


def test_explain_tells_what_happens(bed: Crossing, daemon: Daemon) -> None:
    for port in range(21000, 21010):
        told = json.loads(daemon.command("explain", f"10.9.0.2:{port}", "10.9.0.100:80", "-o", "json"))
        assert [it["step"] for it in told["steps"]][:4] == ["interface", "service", "flow", "access"]
        met = http_from(bed.client, port, "10.9.0.100", 80).split()[0]
        assert told["server"] == f"web/10.0.1.{met.removeprefix('s')}:8080"
    text = daemon.command("explain", "10.9.0.2:21000", "10.9.0.100:80")
    assert "entry" in text
    assert "the destination becomes 10.0.1." in text
    assert "what 10.0.1." in text
    six = json.loads(daemon.command("explain", "[fd00:9::2]:21000", "[fd00:9::100]:80", "-o", "json"))
    met = http_from(bed.client, 21000, "fd00:9::100", 80).split()[0]
    assert six["server"] == f"web6/[fd00:1::{int(met.removeprefix('s')):x}]:8080"


def test_explain_tells_what_would_be_without_a_server(own: tuple[Crossing, Daemon]) -> None:
    bed, daemon = own
    told = json.loads(daemon.command("explain", "10.9.0.2:22000", "10.9.0.100:80", "-o", "json"))
    query = ("explain", "10.9.0.2:22000", "10.9.0.100:80", "--without", told["server"], "-o", "json")
    instead = json.loads(daemon.command(*query))["instead"]
    assert instead not in {None, told["server"]}
    daemon.change(told["server"], admin="drain")
    met = http_from(bed.client, 22000, "10.9.0.100", 80).split()[0]
    assert instead == f"web/10.0.1.{met.removeprefix('s')}:8080"


def test_cleanup_removes_what_a_killed_daemon_left(own: tuple[Crossing, Daemon]) -> None:
    bed, daemon = own
    assert "runs with the same socket" in daemon.command("cleanup", check=False, both=True)
    daemon.kill()
    assert "prog/xdp" in bed.balancer.ip("link", "show", "eth0")
    said = daemon.command("cleanup")
    assert "removed XDP program of interface eth0" in said
    assert "prog/xdp" not in bed.balancer.ip("link", "show", "eth0")
    assert "nothing was left" in daemon.command("cleanup")
