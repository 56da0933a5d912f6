# SPDX-License-Identifier: Apache-2.0
"""Checksums that are left to hardware, in native and generic mode: nothing is corrupted (F23)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.asking import udp_ask
from support.crossing import Crossing, Daemon, crossing
from support.netns import ip
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]
VIPS = ("10.9.0.100", "fd00:9::100")
TEXT = """
services:
  nat: {listen: 10.9.0.100:80, pool: inside, forwarding: nat}
  nat6: {listen: "[fd00:9::100]:80", pool: inside6, forwarding: nat}
  full: {listen: 10.9.0.100:81, pool: inside, forwarding: fullnat}
  full6: {listen: "[fd00:9::100]:81", pool: inside6, forwarding: fullnat}
  dsr: {listen: 10.9.0.100:82, pool: near, forwarding: dsr}
  dsr6: {listen: "[fd00:9::100]:82", pool: near6, forwarding: dsr}
  tunnel: {listen: 10.9.0.100:83, pool: far, forwarding: tunnel}
  tunnel6: {listen: "[fd00:9::100]:83", pool: far6, forwarding: tunnel}
  echo: {listen: 10.9.0.100:53, protocol: udp, pool: echo, forwarding: nat}
  echo6: {listen: "[fd00:9::100]:53", protocol: udp, pool: echo6, forwarding: nat}
pools:
  inside: {servers: ["10.0.1.10:8080"], health: none}
  inside6: {servers: ["[fd00:1::a]:8080"], health: none}
  near: {servers: ["10.9.0.4:82"], health: none}
  near6: {servers: ["[fd00:9::4]:82"], health: none}
  far: {servers: ["10.0.7.10:83"], health: none}
  far6: {servers: ["[fd00:7::10]:83"], health: none}
  echo: {servers: ["10.0.1.10:53"], health: none}
  echo6: {servers: ["[fd00:1::a]:53"], health: none}
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
  fd00:9::100/64: {interface: eth0, owner: static}
"""
FORWARDINGS = {80: ("nat", "s1"), 81: ("fullnat", "s1"), 82: ("dsr", "s2"), 83: ("tunnel", "s3")}


def served(bed: Crossing, directory: Path) -> None:
    inside = bed.add_server("s1", 10)
    inside.start(directory, 8080)
    for at in ("0.0.0.0", "::"):
        inside.echo(directory, at, 53)
    bed.add_near("s2", *VIPS).start(directory, 82)
    bed.add_far("s3", 7, *VIPS).start(directory, 83)
    bed.ready()


@pytest.fixture(params=["on", "off"], ids=["tx on", "tx off"])
def bed(runtime: Path, request: pytest.FixtureRequest) -> Iterator[Crossing]:
    with crossing(runtime) as made:
        served(made, runtime)
        if request.param == "on":
            made.leave_checksums()
        yield made


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_f23_ten_megabytes_arrive_whole_in_both_directions(bed: Crossing, runtime: Path, mode: str) -> None:
    content = os.urandom(10 << 20)
    body, got = runtime / "body", runtime / "got"
    body.write_bytes(content)
    with Daemon(bed.balancer, runtime, f"{TEXT}\nxdp: {{flow_table: 4096, mode: {mode}}}\n"):
        shown = {"native": " xdp ", "generic": " xdpgeneric "}[mode]
        until(lambda: shown in bed.balancer.ip("link", "show", "eth0"), 10, f"{mode} mode")
        for vip in VIPS:
            host = f"[{vip}]" if ":" in vip else vip
            for port, (name, server) in FORWARDINGS.items():
                url = f"http://{host}:{port}/data/{name}"
                bed.curl(url, "-H", "Expect:", "-T", str(body))
                stored = runtime / server / "data" / name
                assert sha256(stored.read_bytes()) == sha256(content), (vip, name)
                bed.curl(url, "-o", str(got))
                assert sha256(got.read_bytes()) == sha256(content), (vip, name)
                stored.unlink()
            assert udp_ask(bed.client, vip, 53, content[:1400]) == b"s1 " + content[:1400]


def test_f23_what_a_neighbour_did_not_cut_is_dropped_by_name_and_never_corrupted(runtime: Path) -> None:
    """A veth in generic mode lets through what its peer left to be segmented by hardware (GSO)."""
    body = runtime / "body"
    body.write_bytes(os.urandom(300_000))
    with crossing(runtime) as bed:
        inside = bed.add_server("s1", 10)
        inside.start(runtime, 8080)
        bed.client.run("ethtool", "-K", "eth0", "tx", "on", "tso", "on", "gso", "on")
        with Daemon(bed.balancer, runtime, f"{TEXT}\nxdp: {{flow_table: 4096, mode: generic}}\n") as daemon:
            bed.curl("http://10.9.0.100:80/data/x", "-H", "Expect:", "-T", str(body), "-m", "3", check=False)
            assert daemon.metric("xdp_packets_total", fate="drop_merged") > 0
            assert bed.counters().get("SENT_TOO_BIG", 0) == 0  # each of its parts is small enough
            bed.client.run("ethtool", "-K", "eth0", "tso", "off", "gso", "off")  # the remedy
            bed.curl("http://10.9.0.100:80/data/x", "-H", "Expect:", "-T", str(body))
            assert sha256((runtime / "s1" / "data" / "x").read_bytes()) == sha256(body.read_bytes())


def test_f23_a_datagram_too_long_to_be_summed_up_is_dropped_by_name(runtime: Path) -> None:
    """Generic mode, links of 64 KB: up to 16 KB are summed up, what is longer may have the checksum of its sender."""
    with crossing(runtime) as bed:
        inside = bed.add_server("s1", 10)
        inside.echo(runtime, "0.0.0.0", 53)
        for node in bed.net.nodes.values():
            for link in json.loads(node.run("ip", "-j", "link", "show", "type", "veth")):
                node.ip("link", "set", link["ifname"], "mtu", "65535")
        for port in json.loads(ip("-n", bed.net.name, "-j", "link", "show", "type", "veth")):
            ip("-n", bed.net.name, "link", "set", port["ifname"], "mtu", "65535")
        with Daemon(bed.balancer, runtime, f"{TEXT}\nxdp: {{flow_table: 4096, mode: generic}}\n") as daemon:
            content = os.urandom(20_000)
            assert udp_ask(bed.client, VIPS[0], 53, content) == b"s1 " + content, "its sender summed it up"
            bed.client.run("ethtool", "-K", "eth0", "tx", "on")
            assert udp_ask(bed.client, VIPS[0], 53, content[:16_000]) == b"s1 " + content[:16_000]
            assert "DROP_CHECKSUM" not in bed.counters()
            assert udp_ask(bed.client, VIPS[0], 53, content, timeout_s=0.5) == b""
            assert bed.counters()["DROP_CHECKSUM"] == 1
            until(lambda: daemon.metric("xdp_packets_total", fate="drop_checksum") == 1, 10, "it is a metric")
