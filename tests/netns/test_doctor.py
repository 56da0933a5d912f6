# SPDX-License-Identifier: Apache-2.0
"""``fairlead doctor`` on hosts with real faults: it names what loses traffic, and the printed fix brings it back."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fairlead.app.daemon import NATIVE
from support.crossing import Crossing, Daemon, crossing
from support.daemon import PROGRAM, inside_of
from support.netns import Lan, Node, ip
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(120)]
VIP, VIP6 = "10.9.0.100", "fd00:9::100"
VIPS = """
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
  fd00:9::100/64: {interface: eth0, owner: static}
xdp: {flow_table: 4096}
"""


def setup(forwarding: str, *servers: str) -> str:
    """One service with servers that nobody asks how they are."""
    listed = ", ".join(f'"{server}"' for server in servers)
    return f"""
services: {{web: {{listen: 10.9.0.100:80, pool: web, forwarding: {forwarding}}}}}
pools: {{web: {{servers: [{listed}], health: none}}}}
{VIPS}"""


@dataclass(frozen=True)
class Diagnosis:
    """What ``fairlead doctor`` said."""

    code: int
    findings: list[dict[str, Any]]

    def of(self, name: str, severity: str = "error") -> list[dict[str, Any]]:
        return [it for it in self.findings if (it["name"], it["severity"]) == (name, severity)]

    @property
    def errors(self) -> set[tuple[str, str]]:
        return {(it["name"], it["subject"]) for it in self.findings if it["severity"] == "error"}


def doctor(node: Node, file: Path, *options: str) -> Diagnosis:
    command = inside_of(node, *PROGRAM, "doctor", str(file), "-o", "json", *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert not done.stderr, done.stderr
    return Diagnosis(done.returncode, json.loads(done.stdout)["findings"])


def apply(where: Node | Lan, fix: str) -> None:
    """Type what was printed, as it was printed."""
    namespace = where.namespace if isinstance(where, Node) else where.name
    subprocess.run(["nsenter", f"--net=/run/netns/{namespace}", "sh", "-c", fix], check=True, capture_output=True)


def macs_of(client: Node, address: str) -> set[str]:
    """Who answers ``client``, asked by broadcast alone."""
    said = client.run("arping", "-b", "-c", "2", "-w", "2", "-I", "eth0", address, check=False)
    return {mac.lower() for mac in re.findall(r"\[([0-9A-F:]{17})\]", said)}


@contextmanager
def serving(bed: Crossing, directory: Path, text: str) -> Iterator[Daemon]:
    with Daemon(bed.balancer, directory, text) as daemon:
        until(lambda: bed.balancer.holds(f"{VIP}/24"), 10, "the VIP is there")
        yield daemon


@pytest.fixture
def bed(runtime: Path) -> Iterator[Crossing]:
    with crossing(runtime) as made:
        yield made


def answers(bed: Crossing, *options: str) -> bool:
    """Whether the service does: a SYN is repeated after 1 s and 3 s, and each neighbour on the way may cost one."""
    return bed.curl(f"http://{VIP}/", "-m", "4", *options, check=False) != ""


@pytest.fixture
def near(bed: Crossing, runtime: Path) -> Iterator[tuple[Crossing, Daemon]]:
    """Three servers of dsr beside the clients."""
    for name in ("s1", "s2", "s3"):
        bed.add_near(name, VIP, VIP6).start(runtime, 80)
    bed.ready()
    with serving(bed, runtime, setup("dsr", "10.9.0.3:80", "10.9.0.4:80", "10.9.0.5:80")) as daemon:
        yield bed, daemon


def test_f13_a_server_that_answers_arp_for_the_vip_is_found_from_both_sides(near: tuple[Crossing, Daemon]) -> None:
    bed, daemon = near
    ours, culprit = bed.balancer.mac(), bed.servers["s2"].node
    assert macs_of(bed.client, VIP) == {ours}
    culprit.run("sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=0")
    assert macs_of(bed.client, VIP) == {ours, culprit.mac()}
    told = doctor(culprit, daemon.file, "--real-server")
    assert (told.code, told.errors) == (1, {("arp_ignore", "net.ipv4.conf.eth0.arp_ignore")})
    assert doctor(bed.servers["s1"].node, daemon.file, "--real-server").code == 0
    seen = doctor(bed.balancer, daemon.file)
    assert (seen.code, seen.errors) == (1, {("vip_owners", VIP)})
    assert culprit.mac() in seen.of("vip_owners")[0]["message"]
    assert ours not in seen.of("vip_owners")[0]["message"]
    apply(culprit, told.of("arp_ignore")[0]["fix"])
    assert macs_of(bed.client, VIP) == {ours}
    assert doctor(culprit, daemon.file, "--real-server").code == 0
    assert doctor(bed.balancer, daemon.file).code == 0


def test_f13_a_server_that_asks_in_the_name_of_the_vip(near: tuple[Crossing, Daemon]) -> None:
    bed, daemon = near
    culprit = bed.servers["s2"].node

    def spoils_the_client() -> bool:
        bed.client.speak_to(VIP)
        until(lambda: bed.client.neighbour(VIP) == bed.balancer.mac(), 10, "the client knows the owner")
        culprit.ip("neighbour", "flush", "all")
        with culprit.inside():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.bind((VIP, 0))
            sock.sendto(b"?", (bed.client.address, 9))
        until(lambda: culprit.neighbour(bed.client.address), 10, "it was answered")
        return bed.client.neighbour(VIP) == culprit.mac()

    assert not spoils_the_client()
    culprit.run("sysctl", "-q", "-w", "net.ipv4.conf.all.arp_announce=0")
    # The owner announces itself meanwhile, which mends it again.
    until(spoils_the_client, 20, "the client believes the culprit at some moment")
    told = doctor(culprit, daemon.file, "--real-server")
    assert (told.code, told.errors) == (1, {("arp_announce", "net.ipv4.conf.eth0.arp_announce")})
    apply(culprit, told.of("arp_announce")[0]["fix"])
    bed.client.ip("neighbour", "flush", "all")
    assert not spoils_the_client()
    assert doctor(culprit, daemon.file, "--real-server").code == 0


def test_f13_a_vip_on_an_ordinary_interface_is_found_from_both_sides(near: tuple[Crossing, Daemon]) -> None:
    bed, daemon = near
    culprit = bed.servers["s2"].node
    for vip, prefix in ((VIP, 32), (VIP6, 128)):
        culprit.ip("address", "del", f"{vip}/{prefix}", "dev", "lo")
    file = daemon.file.with_name("six.yaml")
    file.write_text(
        daemon.file.read_text()
        .replace("services: {", 'services: {six: {listen: "[fd00:9::100]:80", pool: six, forwarding: dsr}, ')
        .replace("pools: {", 'pools: {six: {servers: ["[fd00:9::4]:80"], health: none}, ')
    )
    assert doctor(culprit, file, "--real-server").errors == {("vip_place", VIP), ("vip_place", VIP6)}
    culprit.ip("address", "add", f"{VIP}/24", "dev", "eth0")
    culprit.ip("address", "add", f"{VIP6}/64", "dev", "eth0", "nodad")
    seen = doctor(bed.balancer, daemon.file)
    assert seen.errors == {("vip_owners", VIP), ("vip_owners", VIP6)}
    assert all(culprit.mac() in it["message"] for it in seen.of("vip_owners"))
    told = doctor(culprit, file, "--real-server")
    assert told.errors == {("vip_place", VIP), ("vip_place", VIP6)}
    for it in told.of("vip_place"):
        apply(culprit, it["fix"])
    assert doctor(culprit, file, "--real-server").code == 0
    assert doctor(bed.balancer, daemon.file).code == 0
    assert macs_of(bed.client, VIP) == {bed.balancer.mac()}


@pytest.mark.parametrize("gro", ["off", "on"])
@pytest.mark.parametrize("forwarding", ["dsr", "nat"])
def test_f24_frames_that_a_veth_loses_are_explained(bed: Crossing, runtime: Path, forwarding: str, gro: str) -> None:
    """GRO at the other end is enough for packets that leave by another interface, not for those that turn around."""
    if forwarding == "dsr":
        bed.add_near("s1", VIP).start(runtime, 80)
        text, lossy = setup("dsr", "10.9.0.3:80"), {"eth0": "p-lb"}
    else:
        bed.add_server("s1", 10).start(runtime, 80)
        text, lossy = setup("nat", "10.0.1.10:80"), {"eth0": "p-lb", "eth1": "q-lb"}
    bed.ready(without=("p-lb", "q-lb"))
    for port in lossy.values():
        ip("netns", "exec", bed.net.name, "ethtool", "-K", port, "gro", gro)
    works = (forwarding, gro) == ("nat", "on")
    with serving(bed, runtime, text) as daemon:
        assert answers(bed) is works
        told = doctor(bed.balancer, daemon.file)
        assert told.code == (0 if works else 1)
        found = told.of("veth_peer", "warning" if works else "error")
        assert {it["subject"] for it in found} == set(lossy)
        assert told.errors == (set() if works else {("veth_peer", name) for name in lossy})
        for it in found:
            assert f"its peer {lossy[it['subject']]} " in it["message"]
            apply(bed.net, it["fix"])
        assert answers(bed)
        told = doctor(bed.balancer, daemon.file)
        assert told.code == 0
        assert {it["subject"] for it in told.of("veth_peer", "ok")} == set(lossy)


def test_f32_strict_rp_filter_where_a_tunnel_ends_is_named_and_the_fix_works(bed: Crossing, runtime: Path) -> None:
    server = bed.add_far("s1", 7, VIP)
    server.start(runtime, 80)
    bed.ready()
    with serving(bed, runtime, setup("tunnel", "10.0.7.10:80")) as daemon:
        until(lambda: answers(bed), 10, "it works")
        server.node.run("sysctl", "-q", "-w", "net.ipv4.conf.eth1.rp_filter=1")
        assert not answers(bed)
        told = doctor(server.node, daemon.file, "--real-server")
        assert (told.code, told.errors) == (1, {("rp_filter", "net.ipv4.conf.eth1.rp_filter")})
        (found,) = told.of("rp_filter")
        assert found["fix"] == "sysctl -w net.ipv4.conf.eth1.rp_filter=2"
        apply(server.node, found["fix"])
        assert answers(bed)
        assert doctor(server.node, daemon.file, "--real-server").code == 0
        server.node.run("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.eth1.rp_filter=0")
        assert not answers(bed)
        told = doctor(server.node, daemon.file, "--real-server")
        apply(server.node, told.of("rp_filter")[0]["fix"])
        assert answers(bed), "the value for all interfaces was not touched"
        (room,) = doctor(bed.balancer, daemon.file).of("tunnel_mtu", "warning")
        assert (room["subject"], room["fix"]) == ("eth1", "ip link set dev eth1 mtu 1520")


def test_f32_strict_rp_filter_of_the_balancer_is_an_event_and_a_finding(bed: Crossing, runtime: Path) -> None:
    """Clients come in by eth0 and are answered by eth1: what the program gives to the stack is dropped there."""
    bed.add_server("s1", 10).start(runtime, 80)
    bed.net.connect(bed.client, "eth1", "q-c1", "br1")
    bed.client.run("ethtool", "-K", "eth1", "tx", "off", "tso", "off", "gso", "off", "gro", "off")
    bed.client.ip("address", "add", "10.0.1.99/24", "dev", "eth1")
    bed.client.ip("address", "add", "10.50.0.2/32", "dev", "lo")
    bed.balancer.ip("route", "add", "default", "via", "10.0.1.99")
    bed.ready()
    name = "net.ipv4.conf.eth0.rp_filter"
    bed.balancer.run("sysctl", "-q", "-w", f"{name}=1")
    with serving(bed, runtime, setup("nat", "10.0.1.10:80")) as daemon:
        assert not answers(bed, "--interface", "10.50.0.2")
        until(lambda: daemon.events("rp_filter"), 10, "it is told")
        (event,) = daemon.events("rp_filter")
        told = doctor(bed.balancer, daemon.file)
        assert (told.code, told.errors) == (1, {("rp_filter", name)})
        (found,) = told.of("rp_filter")
        assert (event["subject"], event["message"]) == (name, f"{found['message']}: {found['fix']}")
        apply(bed.balancer, found["fix"])
        assert answers(bed, "--interface", "10.50.0.2")
        assert doctor(bed.balancer, daemon.file).code == 0


def test_f20_a_program_of_others_is_named_and_stays(bed: Crossing, runtime: Path) -> None:
    bed.add_near("s1", VIP).start(runtime, 80)
    bed.ready()
    bed.balancer.ip("link", "set", "dev", "eth0", "xdp", "object", str(NATIVE / "pass.bpf.o"), "section", "xdp")
    file = runtime / "fairlead.yaml"
    file.write_text(setup("dsr", "10.9.0.3:80"))
    (before,) = json.loads(bed.balancer.ip("-j", "-d", "link", "show", "dev", "eth0"))
    told = doctor(bed.balancer, file)
    assert (told.code, told.errors) == (1, {("foreign_xdp", "eth0")})
    (found,) = told.of("foreign_xdp")
    assert f"'fairlead_pass' (id {before['xdp']['prog']['id']})" in found["message"]
    (after,) = json.loads(bed.balancer.ip("-j", "-d", "link", "show", "dev", "eth0"))
    assert after["xdp"] == before["xdp"]
    apply(bed.balancer, found["fix"])
    with serving(bed, runtime, file.read_text()):
        assert answers(bed)
        assert doctor(bed.balancer, file).code == 0, "its own program is none of others"


def test_f23_gro_is_an_error_for_generic_mode_alone(bed: Crossing, runtime: Path) -> None:
    bed.add_near("s1", VIP)
    bed.ready()
    native, generic = runtime / "native.yaml", runtime / "generic.yaml"
    native.write_text(setup("dsr", "10.9.0.3:80"))
    generic.write_text(setup("dsr", "10.9.0.3:80").replace("xdp: {", "xdp: {mode: generic, "))
    bed.balancer.run("ethtool", "-K", "eth0", "gro", "on")
    assert doctor(bed.balancer, native).code == 0
    told = doctor(bed.balancer, generic)
    assert (told.code, told.errors) == (1, {("gro", "eth0")})
    apply(bed.balancer, told.of("gro")[0]["fix"])
    assert doctor(bed.balancer, generic).code == 0


def snapshot(node: Node) -> str:
    seen = [node.ip("-d", what, "show") for what in ("link", "address", "route", "rule")]
    return "\n".join([*seen, node.run("sysctl", "-a", "--pattern", r"net\.ipv[46]\.conf")])


def test_it_changes_nothing_and_needs_no_rights_to_say_what_it_sees(bed: Crossing, runtime: Path) -> None:
    bed.add_near("s1", VIP)
    bed.ready()
    file = runtime / "fairlead.yaml"
    file.write_text(setup("dsr", "10.9.0.3:80"))
    before = snapshot(bed.balancer)
    assert doctor(bed.balancer, file).code == 0
    assert snapshot(bed.balancer) == before
    command = inside_of(
        bed.balancer, "setpriv", "--bounding-set=-all", "--inh-caps=-all", *PROGRAM, "doctor", str(file), "-o", "json"
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, "")
    told = Diagnosis(done.returncode, json.loads(done.stdout)["findings"])
    assert told.errors == {("capabilities", "the kernel's data plane"), ("capabilities", "vips")}
    assert {it["subject"] for it in told.of("vip_owners", "warning")} == {VIP, VIP6}
    assert "cannot be seen" in told.of("veth_peer", "warning")[0]["message"]
