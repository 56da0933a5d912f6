# SPDX-License-Identifier: Apache-2.0
"""Foreign programs, hairpins and what others change in the kernel by hand (F20, F33, F48), with real traffic."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fairlead.dataplane.xdp import abi, pins
from fairlead.dataplane.xdp.libbpf.hooks import XDP_NATIVE, Link, attached_program
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from support.crossing import Crossing, Daemon, crossing
from support.daemon import PROGRAM, inside_of
from support.netns import inside
from support.wait import until
from support.xdp import bed_object

pytestmark = [pytest.mark.root, pytest.mark.system]
VIP = "10.9.0.100"
TEXT = """
services:
  web: {listen: 10.9.0.100:80, pool: web, forwarding: nat}
  lone: {listen: 10.9.0.100:81, pool: lone, forwarding: nat}
  full: {listen: 10.9.0.100:82, pool: web, forwarding: fullnat}
  full6: {listen: "[fd00:9::100]:82", pool: web6, forwarding: fullnat}
pools:
  web: {servers: ["10.0.1.10:8080", "10.0.1.11:8080"], health: none}
  lone: {servers: ["10.0.1.10:8080"], health: none}
  web6: {servers: ["[fd00:1::a]:8080", "[fd00:1::b]:8080"], health: none}
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
  fd00:9::100/64: {interface: eth0, owner: static}
xdp: {flow_table: 4096}
"""


@pytest.fixture
def bed(runtime: Path) -> Iterator[Crossing]:
    with crossing(runtime) as made:
        for number in (10, 11):
            made.add_server(f"s{number}", number).start(runtime)
        made.ready()
        yield made


@pytest.fixture
def daemon(bed: Crossing, runtime: Path) -> Iterator[Daemon]:
    with Daemon(bed.balancer, runtime, TEXT) as made:
        yield made


def test_f20_a_foreign_program_stays_and_the_error_says_what_to_do(bed: Crossing, runtime: Path) -> None:
    file = runtime / "fairlead.yaml"
    file.write_text(TEXT)
    with inside(bed.balancer.namespace):
        foreign = LoadedObject(bed_object())
        index = socket.if_nametoindex("eth0")
        link = Link.attach(foreign.programs["pass_all"], index, XDP_NATIVE)
        number = attached_program(index)
    with closing(foreign), closing(link):
        command = inside_of(bed.balancer, *PROGRAM, "run", str(file), "--socket", str(runtime / "api.sock"))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 1, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert "eth0 carries another XDP program 'pass_all'" in last
        assert "ip link set dev eth0 xdp off" in last
        assert "Traceback" not in done.stderr
        with inside(bed.balancer.namespace):
            assert attached_program(index) == number
            assert not pins.namespace_root().exists()  # nothing of ours is left


def test_f33_a_server_reaches_its_own_vip_by_fullnat(bed: Crossing, daemon: Daemon) -> None:
    client = bed.servers["s10"].node
    for url in (f"http://{VIP}:82/", "http://[fd00:9::100]:82/"):
        assert {bed.curl(url, client=client).split()[0] for _ in range(20)} == {"s10", "s11"}


def test_f33_a_server_that_would_meet_itself_by_nat_is_dropped_by_name(bed: Crossing, daemon: Daemon) -> None:
    """Its answer would never pass the balancer again, so nobody could turn it back."""
    client = bed.servers["s10"].node
    assert bed.curl(f"http://{VIP}:81/", "-m", "1", client=client, check=False) == ""
    until(lambda: daemon.metric("xdp_packets_total", fate="drop_hairpin") > 0, 10, "it is counted")
    assert bed.curl(f"http://{VIP}:81/").split()[0] == "s10"  # others meet it


def test_f48_map_entries_that_somebody_deleted_come_back(bed: Crossing, daemon: Daemon) -> None:
    assert bed.curl(f"http://{VIP}/").split()[0] in {"s10", "s11"}
    with inside(bed.balancer.namespace):
        (place,) = pins.namespace_root().glob("[0-9]*/listeners4")
    key = abi.ListenKey4(bytes((10, 9, 0, 100)), 80, 6).pack()
    with closing(BpfMap.at(place)) as listeners:
        before = listeners.get(key)
        assert listeners.delete(key)
        until(lambda: listeners.get(key) == before, 10, "the listener is back")
    with closing(BpfMap.at(place.parent / "servers")) as servers:
        row = servers.get((1).to_bytes(4, "little"))
        servers.put((1).to_bytes(4, "little"), bytes(servers.value_size))
        until(lambda: servers.get((1).to_bytes(4, "little")) == row, 10, "the server is back")
    assert bed.curl(f"http://{VIP}/").split()[0] in {"s10", "s11"}
    until(lambda: daemon.metric("drift_repairs_total") >= 2, 10, "they are counted")
    assert daemon.events("drift")


def test_f48_a_program_that_somebody_took_away_comes_back(bed: Crossing, daemon: Daemon) -> None:
    with inside(bed.balancer.namespace):
        index = socket.if_nametoindex("eth0")
        pin = pins.namespace_root() / f"{pins.LINK}{index}"
    pin.unlink()
    until(pin.exists, 10, "the pin is back")
    subprocess.run(["bpftool", "link", "detach", "pinned", str(pin)], check=True, capture_output=True)
    assert "prog/xdp" not in bed.balancer.ip("link", "show", "eth0")
    until(lambda: "prog/xdp" in bed.balancer.ip("link", "show", "eth0"), 10, "the program is back")
    assert bed.curl(f"http://{VIP}/").split()[0] in {"s10", "s11"}
    assert daemon.events("xdp_lost")
    until(lambda: daemon.metric("drift_repairs_total") >= 1, 10, "it is counted once everything was looked at")


def test_f48_an_address_that_somebody_removed_comes_back(bed: Crossing, daemon: Daemon) -> None:
    bed.balancer.ip("address", "del", f"{VIP}/24", "dev", "eth0")
    until(lambda: bed.balancer.holds(f"{VIP}/24"), 10, "the VIP is back")
    assert bed.curl(f"http://{VIP}/").split()[0] in {"s10", "s11"}
