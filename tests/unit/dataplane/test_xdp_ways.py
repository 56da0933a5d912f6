# SPDX-License-Identifier: Apache-2.0
"""The ways of probes over their life: marks, what is not known yet, what is missing, and what is left behind."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from fairlead.dataplane.xdp import abi, ways
from fairlead.dataplane.xdp.filters import FOUND, MADE, PRIORITY
from fairlead.dataplane.xdp.host import Host, Routes
from fairlead.dataplane.xdp.libbpf.hooks import TcHook
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.dataplane.xdp.ways import Ways
from fairlead.errors import OffLink, UnsupportedFeature
from fairlead.model.health import Way
from fairlead.model.net import Protocol
from fairlead.model.service import Forwarding, Passage
from fairlead.model.vip import STATIC, Vip
from fairlead.model.xdp import XdpSettings
from support.models import endpoint
from support.xdp import ROOT, bed_object, compiled, ip, own_namespace

pytestmark = pytest.mark.root
VIP = "192.0.2.100:80"


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with own_namespace():
        ip("link", "set", "lo", "up")
        for name in ("eth0", "eth1"):
            ip("link", "add", name, "type", "veth", "peer", "name", f"far-{name}")
            ip("link", "set", name, "up")
            ip("link", "set", f"far-{name}", "up")
        ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        ip("addr", "add", "10.0.0.1/24", "dev", "eth1")
        yield


class Made:
    """Ways, and what they told."""

    def __init__(self, program: Path | None = None, settings: XdpSettings | None = None) -> None:
        self.told: list[tuple[str, str, str]] = []

        def tell(kind: str, subject: str, message: str) -> None:
            self.told.append((kind, subject, message))

        self.host = Host(settings or XdpSettings(), tell)
        self.host.vips = frozenset({Vip(ip_address("192.0.2.100"), 24, "eth0", STATIC)})
        self.ways = Ways(program or compiled(ROOT / "bpf/ways.bpf.c"), self.host, tell)

    def record(self, way: Way) -> abi.WayRecord:
        loaded = self.ways._loaded
        assert loaded is not None
        return abi.WayRecord.unpack(loaded.maps["ways"].get(self.ways.mark_of(way).to_bytes(4, "little")) or b"")


@pytest.fixture
def made() -> Iterator[Made]:
    it = Made()
    yield it
    it.ways.remove()


def way(server: str = "10.0.0.2", vip: str = VIP, forwarding: Forwarding = Forwarding.TUNNEL) -> Way:
    return Way(ip_address(server), Passage(endpoint(vip), Protocol.TCP, forwarding))


def found() -> dict[tuple[str, str], tuple[int, str]]:
    """Handle and program of our filters, by interface and direction."""
    rows = {}
    with Routes() as routes:
        for index, name in socket.if_nameindex():
            for egress in (True, False):
                for it in routes.filters(index, egress=egress):
                    if it.handle:
                        rows[name, "out" if egress else "in"] = (it.handle, it.name.partition(":")[0])
    return rows


def hooked(handle: int, *names: str) -> dict[tuple[str, str], tuple[int, str]]:
    return {(name, way): (handle, f"fairlead_{way}") for name in names for way in ("in", "out")}


def clsact() -> str:
    return subprocess.run(["tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout


def test_programs_are_where_the_vip_is_and_the_routes_lead(made: Made) -> None:
    made.ways.set(frozenset({way()}))
    assert found() == hooked(MADE, "eth0", "eth1")
    ip("route", "add", "10.5.0.0/24", "dev", "far-eth0")
    made.ways.set(frozenset({way(), way("10.5.0.2")}))
    assert found() == hooked(MADE, "eth0", "eth1", "far-eth0")
    made.ways.set(frozenset({way("10.5.0.2")}))
    assert found() == hooked(MADE, "eth0", "far-eth0"), "nothing of a way to 10.0.0.2 is left"
    made.ways.set(frozenset())
    made.ways.look_after()
    assert found() == {}
    assert "clsact" not in clsact()


def test_named_interfaces_get_the_xdp_program_and_those_of_the_routes_get_this_one_too() -> None:
    made = Made(settings=XdpSettings(interfaces=("eth0",)))
    made.ways.set(frozenset({way()}))
    assert found() == hooked(MADE, "eth0", "eth1")
    made.ways.remove()


def test_a_mark_belongs_to_one_way_and_is_not_used_again_soon(made: Made) -> None:
    first, second, third = way(), way("10.0.0.3"), way("10.0.0.4")
    made.ways.set(frozenset({first, second}))
    marks = {made.ways.mark_of(it) for it in (first, second)}
    assert len(marks) == 2
    assert all(mark & abi.WAY_MARKS == abi.WAY_MARK for mark in marks)
    kept = made.ways.mark_of(second)
    made.ways.set(frozenset({second, third}))
    assert made.record(first).addr == abi.packed(first.server), "a probe may be under way"
    made.ways.look_after()
    with pytest.raises(UnsupportedFeature):
        made.ways.mark_of(first)
    assert made.ways.mark_of(second) == kept
    made.ways.set(frozenset({first, second, third}))
    assert made.ways.mark_of(first) not in marks


def test_more_than_there_are_marks_for_is_said(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "MAX_WAYS", 2)
    wanted = [way(f"10.0.0.{n}") for n in (2, 3, 4)]
    made.ways.set(frozenset(wanted))
    refusals = []
    for it in wanted:
        try:
            made.ways.mark_of(it)
        except UnsupportedFeature as error:
            refusals.append(str(error))
    assert refusals == [f"probing through {VIP}: more than 2 services and servers are probed in this way"]


def test_what_the_routes_did_not_tell_is_asked_again(made: Made) -> None:
    far = way("10.7.0.2")
    made.ways.set(frozenset({far}))
    assert made.record(far).source == abi.NOWHERE
    ip("route", "add", "10.7.0.0/24", "dev", "eth1")
    made.ways.look_after()
    assert made.record(far).source == abi.packed(ip_address("10.0.0.1"))


def test_another_family_is_probed_from_an_address_that_is_no_vip(made: Made) -> None:
    made.host.vips = frozenset({Vip(ip_address("2001:db8::100"), 64, "eth0", STATIC)})
    ip("addr", "add", "2001:db8::100/64", "dev", "eth0", "nodad")
    crossing = way(vip="[2001:db8::100]:80")
    made.ways.set(frozenset({crossing}))
    with pytest.raises(UnsupportedFeature, match="this node has no IPv6 address but VIPs to probe from: give it one"):
        made.ways.mark_of(crossing)
    ip("addr", "add", "2001:db8:1::1/64", "dev", "eth1", "nodad")
    made.ways.look_after()
    assert made.record(crossing).near == abi.packed(ip_address("2001:db8:1::1"))
    ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    made.ways.remove()
    made.ways.set(frozenset({crossing}))
    assert made.record(crossing).near == abi.packed(ip_address("2001:db8::1")), "better beside the VIP"


@pytest.mark.parametrize("forwarding", [Forwarding.DSR, Forwarding.TUNNEL])
def test_dsr_ends_at_the_link_and_who_is_behind_it_is_named(made: Made, forwarding: Forwarding) -> None:
    far, near = way("10.7.0.2", forwarding=forwarding), way("10.0.0.2", forwarding=forwarding)
    ip("route", "add", "10.7.0.0/24", "via", "10.0.0.9")
    made.ways.set(frozenset({far, near}))
    assert made.ways.mark_of(near)
    if forwarding is Forwarding.TUNNEL:
        assert made.ways.mark_of(far)
        return
    with pytest.raises(OffLink, match=r"10\.7\.0\.2 is behind the gateway 10\.0\.0\.9.* `forwarding: tunnel`"):
        made.ways.mark_of(far)
    ip("route", "replace", "10.7.0.0/24", "dev", "eth1")
    assert made.ways.mark_of(far), "it is asked again"


def test_a_route_is_asked_only_while_no_packet_takes_the_way(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(made.host, "gateway", asked.append)
    near = way(forwarding=Forwarding.DSR)
    made.ways.set(frozenset({near}))
    made.ways.mark_of(near)
    assert asked == [near.server]
    record = made.record(near)
    assert asked == [near.server] * 2
    loaded = made.ways._loaded
    assert loaded is not None
    for packets in (1, 2):
        counted = record.pack()[: ways.PACKETS] + packets.to_bytes(8, "little")
        loaded.maps["ways"].put(made.ways._marks[near].to_bytes(4, "little"), counted)
        made.ways.mark_of(near)
    assert asked == [near.server] * 2


def test_filters_that_were_taken_away_come_back(made: Made) -> None:
    made.ways.set(frozenset({way()}))
    TcHook(socket.if_nametoindex("eth1"), egress=True).detach(MADE, PRIORITY)
    assert found() != hooked(MADE, "eth0", "eth1")
    made.ways.look_after()
    assert found() == hooked(MADE, "eth0", "eth1")
    subprocess.run(["tc", "qdisc", "del", "dev", "eth1", "clsact"], check=True)
    made.ways.look_after()
    assert found() == hooked(MADE, "eth0", "eth1")


def test_the_next_agent_takes_the_place_and_remembers_whose_the_qdisc_is(made: Made) -> None:
    assert TcHook.create(socket.if_nametoindex("eth0"))
    first = Made()
    first.ways.set(frozenset({way()}))
    first.ways.let_go()
    assert found() == {**hooked(FOUND, "eth0"), **hooked(MADE, "eth1")}
    made.ways.set(frozenset({way()}))
    assert found() == {**hooked(FOUND, "eth0"), **hooked(MADE, "eth1")}
    made.ways.remove()
    assert found() == {}
    assert clsact().count("clsact") == 1, "that of eth0 was there before"


def test_an_agent_that_needs_no_ways_takes_those_of_its_predecessor_away(made: Made) -> None:
    first = Made()
    first.ways.set(frozenset({way()}))
    first.ways.let_go()
    made.ways.set(frozenset())
    made.ways.look_after()
    assert found() == {}
    assert "clsact" not in clsact()


def test_a_qdisc_in_which_others_have_filters_by_now_stays() -> None:
    made = Made()
    made.ways.set(frozenset({way()}))
    index = socket.if_nametoindex("eth1")
    with LoadedObject(bed_object()) as theirs:
        TcHook(index, egress=False).attach(theirs.programs["watch"], 1, 9)
        made.ways.remove()
        assert found() == {("eth1", "in"): (1, "watch")}


def test_a_foreign_filter_in_our_place_is_told_and_stays(made: Made) -> None:
    index = socket.if_nametoindex("eth1")
    assert TcHook.create(index)
    with LoadedObject(bed_object()) as theirs:
        hook = TcHook(index, egress=True)
        hook.attach(theirs.programs["watch"], FOUND, PRIORITY)
        before = found()["eth1", "out"]
        made.ways.set(frozenset({way()}))
        assert found()["eth1", "out"] == before
        with pytest.raises(UnsupportedFeature, match="eth1"):
            made.ways.mark_of(way())
        assert [kind for kind, _, _ in made.told] == ["ways_failed"]
        hook.detach(FOUND, PRIORITY)
    made.ways.look_after()
    assert made.ways.mark_of(way())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    made = Made(tmp_path / "ways.bpf.o")
    made.ways.set(frozenset({way()}))
    with pytest.raises(UnsupportedFeature, match="install clang and libbpf-dev"):
        made.ways.mark_of(way())
    assert made.ways.packets_of(way()) == 0
    made.ways.remove()


RIGHTS = """
import sys
sys.path[:0] = sys.argv[1:]
from unit.dataplane.test_xdp_ways import Made, way
made = Made()
made.ways.set(frozenset({way()}))
try:
    made.ways.mark_of(way())
except Exception as error:
    print(error)
made.ways.remove()
"""


@pytest.mark.parametrize("rights", ["-all", "-all,+net_admin", "-all,+bpf,+perfmon"])
def test_which_rights_are_missing_is_named(rights: str) -> None:
    """Programs need CAP_BPF and CAP_PERFMON, the place for them CAP_NET_ADMIN."""
    command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", "--reuid=65534", "--clear-groups"]
    if rights != "-all":
        command += [f"--ambient-caps={rights}"]
    compiled(ROOT / "bpf/ways.bpf.c")  # who has no rights finds it done
    places = [part for part in sys.path if part]
    done = subprocess.run(
        [*command, sys.executable, "-c", RIGHTS, *places], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"probing through {VIP}: ")
    assert {"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"} <= set(done.stdout.replace(",", " ").split())
