# SPDX-License-Identifier: Apache-2.0
"""Forwarding: dsr, tunnel and fullnat with real traffic; the servers of a tunnel take packets out by an XDP program."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.asking import avoids, http_from, udp_ask
from support.crossing import Crossing, Daemon, crossing
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]
CHECK = "{type: tcp, interval: 200ms, timeout: 150ms, rise: 1, fall: 1}"
DSR = f"""
services:
  web: {{listen: 10.9.0.100:80, pool: near, forwarding: dsr}}
  web6: {{listen: "[fd00:9::100]:80", pool: near6, forwarding: dsr}}
  dns: {{listen: 10.9.0.100:53, protocol: udp, pool: dns, forwarding: dsr}}
pools:
  near: {{servers: ["10.9.0.3:80", "10.9.0.4:80"], health: &h {CHECK}}}
  near6: {{servers: ["[fd00:9::3]:80", "[fd00:9::4]:80"], health: *h}}
  dns: {{servers: ["10.9.0.3:53", "10.9.0.4:53"], health: none}}
vips:
  10.9.0.100/24: {{interface: eth0, owner: static}}
  fd00:9::100/64: {{interface: eth0, owner: static}}
xdp: {{flow_table: 4096}}
"""
TUNNEL = f"""
services:
  web: {{listen: 10.9.0.100:80, pool: far, forwarding: tunnel}}
  web6: {{listen: "[fd00:9::100]:80", pool: far6, forwarding: tunnel}}
  web4in6: {{listen: 10.9.0.101:80, pool: far6, forwarding: tunnel}}
  dns: {{listen: 10.9.0.100:53, protocol: udp, pool: dns, forwarding: tunnel}}
pools:
  far: {{servers: ["10.0.7.10:80", "10.0.8.10:80"], health: &h {CHECK}}}
  far6: {{servers: ["[fd00:7::10]:80", "[fd00:8::10]:80"], health: *h}}
  dns: {{servers: ["10.0.7.10:53", "10.0.8.10:53"], health: none}}
vips:
  10.9.0.100/24: {{interface: eth0, owner: static}}
  10.9.0.101/24: {{interface: eth0, owner: static}}
  fd00:9::100/64: {{interface: eth0, owner: static}}
xdp: {{flow_table: 4096}}
"""
FULLNAT = f"""
services:
  web: {{listen: 10.9.0.100:80, pool: web, forwarding: fullnat}}
  web6: {{listen: "[fd00:9::100]:80", pool: web6, forwarding: fullnat}}
  dns: {{listen: 10.9.0.100:53, protocol: udp, pool: dns, forwarding: fullnat}}
pools:
  web: {{servers: ["10.0.1.10:80", "10.0.1.11:80"], health: &h {CHECK}}}
  web6: {{servers: ["[fd00:1::a]:80", "[fd00:1::b]:80"], health: *h}}
  dns: {{servers: ["10.0.1.10:53", "10.0.1.11:53"], health: none}}
vips:
  10.9.0.100/24: {{interface: eth0, owner: static}}
  fd00:9::100/64: {{interface: eth0, owner: static}}
xdp: {{flow_table: 4096}}
"""
VIPS = ("10.9.0.100", "fd00:9::100")


def near(bed: Crossing, directory: Path) -> str:
    for name in ("s1", "s2"):
        server = bed.add_near(name, *VIPS)
        server.start(directory, 80)
        server.echo(directory, VIPS[0], 53)
    return DSR


def far(bed: Crossing, directory: Path) -> str:
    for name, number in (("s1", 7), ("s2", 8)):
        server = bed.add_far(name, number, *VIPS, "10.9.0.101")
        server.start(directory, 80)
        server.echo(directory, VIPS[0], 53)
    return TUNNEL


def full(bed: Crossing, directory: Path) -> str:
    for name, number in (("s1", 10), ("s2", 11)):
        server = bed.add_server(name, number)
        # Nothing of these servers' routing leads back to the clients by itself.
        server.node.ip("route", "del", "default")
        server.node.ip("-6", "route", "del", "default")
        server.start(directory, 80)
        server.echo(directory, "0.0.0.0", 53)
    return FULLNAT


MODES: dict[str, Callable[[Crossing, Path], str]] = {"dsr": near, "tunnel": far, "fullnat": full}


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def started(mode: str, directory: Path) -> Iterator[tuple[Crossing, Daemon]]:
    with crossing(directory) as bed:
        text = MODES[mode](bed, directory)
        bed.ready()
        with Daemon(bed.balancer, directory, text) as daemon:
            daemon.wait_until_up()
            yield bed, daemon


@pytest.fixture(scope="module")
def running(mode: str, directory: Path) -> Iterator[tuple[Crossing, Daemon]]:
    """For tests that leave everything as it was."""
    with started(mode, directory) as made:
        yield made


def connections(daemon: Daemon) -> int:
    """That the service ``web`` has met."""
    return next(int(it["connections_total"]) for it in daemon.get("services") if it["name"] == "web")


def test_all_servers_answer(running: tuple[Crossing, Daemon], mode: str) -> None:
    bed, daemon = running
    before = connections(daemon)
    for vip in (*VIPS, *(["10.9.0.101"] if mode == "tunnel" else [])):
        answers = {http_from(bed.client, port, vip, 80) for port in range(20000, 20030)}
        assert {answer.split()[0] for answer in answers} == {"s1", "s2"}, bed.counters()
        if mode != "fullnat":
            assert {answer.split()[1] for answer in answers} == {"fd00:9::2" if ":" in vip else "10.9.0.2"}
    answers = {udp_ask(bed.client, VIPS[0], 53, b"hello").decode() for _ in range(30)}
    assert answers == {"s1 hello", "s2 hello"}
    assert connections(daemon) == before + 30


@pytest.mark.parametrize("vip", VIPS)
def test_ten_megabytes_arrive_as_they_were_sent(running: tuple[Crossing, Daemon], runtime: Path, vip: str) -> None:
    bed, _ = running
    content = os.urandom(10 << 20)
    for server in bed.servers.values():
        (bed.directory / server.name / "data" / "big").write_bytes(content)
    target = runtime / "got"
    bed.curl(f"http://{f'[{vip}]' if ':' in vip else vip}/data/big", "-o", str(target))
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_large_uploads_find_their_way(running: tuple[Crossing, Daemon], runtime: Path, mode: str) -> None:
    """What goes in is as large as the link allows: in a tunnel it does not fit, and the sender is told so (F21)."""
    bed, _ = running
    body = runtime / "body"
    body.write_bytes(os.urandom(1 << 20))
    for vip in VIPS:
        answer = bed.curl(f"http://{f'[{vip}]' if ':' in vip else vip}/", "-H", "Expect:", "-T", str(body))
        assert answer.split()[0] in {"s1", "s2"}, bed.counters()
    if mode == "tunnel":
        assert bed.counters()["SENT_TOO_BIG"] > 0


@pytest.mark.parametrize("mode", ["fullnat"], indirect=True)
def test_no_packet_is_lost_while_link_addresses_are_not_known(running: tuple[Crossing, Daemon]) -> None:
    bed, _ = running
    before = bed.counters().get("PASS_UNRESOLVED", 0)

    def met() -> bool:
        for address, interface in (("10.9.0.2", "eth0"), ("10.0.1.10", "eth1"), ("10.0.1.11", "eth1")):
            bed.balancer.ip("neigh", "del", address, "dev", interface, check=False)
        assert udp_ask(bed.client, VIPS[0], 53, b"hello") != b"", bed.counters()
        return bed.counters().get("PASS_UNRESOLVED", 0) > before + 5

    until(met, 10, "they were not known")
    assert "PASS_RESOLVING" not in bed.counters()


def test_a_dead_server_loses_its_flows_alone_and_gets_only_those_back(mode: str, runtime: Path) -> None:
    with started(mode, runtime) as (bed, daemon):
        judge_a_death(bed, daemon)


def judge_a_death(bed: Crossing, daemon: Daemon) -> None:

    def where() -> dict[int, str]:
        return {port: http_from(bed.client, port, VIPS[0], 80).split()[0] for port in range(20000, 20030)}

    key = next(it["key"] for it in daemon.get("servers") if it["pool"] != "dns" and "[" not in it["key"])
    before = where()
    bed.servers["s1"].kill()
    until(lambda: daemon.server(key)["health"] == "down", 10, "the dead one is noticed")
    theirs = [port for port, name in before.items() if name == "s1"]
    until(lambda: avoids(bed.client, theirs, VIPS[0], 80, "s1"), 10, "its flows go elsewhere")
    during = where()
    assert {port for port in before if before[port] != during[port]} == {p for p in before if before[p] == "s1"}
    bed.servers["s1"].start(daemon.file.parent, 80)
    until(lambda: daemon.server(key)["health"] == "up", 10, "it is back")
    until(lambda: where() == before, 10, "they come back, and no others")
