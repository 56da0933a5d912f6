# SPDX-License-Identifier: Apache-2.0
"""What made others lose an address or give it two owners. Each test bears the number of its failure."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from fairlead.announce.l2 import BURST_S
from fairlead.announce.vrrp.process import TICK_S
from fairlead.model.net import IPAddress
from fairlead.model.vip import VrrpChecksum
from fairlead.protocols.vrrp.packet import GROUP_V4, Advertisement, ChecksumForm, encode
from support.capture import Capture
from support.netns import Lan, Node
from support.vrrp import STATIC, Fairlead, instance, vip
from support.wait import PAUSE_S, until
from support.yardstick import within

pytestmark = [pytest.mark.root, pytest.mark.system]
VIP, ADDRESS = "10.9.0.100/24", "10.9.0.100"
Make = Callable[..., Fairlead]


@pytest.fixture
def make(net: Lan, runtime: Path) -> Make:
    """A router on a new node; its instance takes the keywords."""

    def made(name: str, vips: tuple[str, ...] = (VIP,), **keys: Any) -> Fairlead:
        node = net.nodes.get(name) or net.add(name)
        return Fairlead(node, runtime / name, [vip(each) for each in vips], [instance(**keys)])

    return made


@contextmanager
def pair(make: Make, **keys: object) -> Iterator[tuple[Fairlead, Fairlead]]:
    """``one`` (priority 200) owns the VIP, ``two`` (100) is behind."""
    with make("one", priority=200, **keys) as one:
        until(lambda: one.state() == "active", 10, "one owns it")
        with make("two", priority=100, **keys) as two:
            until(lambda: two.state() == "backup", 10, "two is behind")
            yield one, two


def _counts_conflicts(router: Fairlead) -> bool:
    return router.hear().instances[0].conflicts_total > 3


def _has_counted(router: Fairlead, invalid: int) -> bool:
    return sum(router.hear().invalid.get("eth0", {}).values()) >= invalid


def learn(client: Node) -> None:
    """Have the client learn who owns the VIP."""
    client.speak_to(ADDRESS)
    until(lambda: client.neighbour(ADDRESS), 10, "the client has learned it")


def test_f02_after_a_partition_of_one_direction_heals_the_neighbours_know_the_owner(net: Lan, make: Make) -> None:
    client = net.add("client")
    with pair(make) as (one, two):
        learn(client)
        time.sleep(BURST_S[-1])  # what one announced when it became the owner must not help
        net.nft("table bridge t {", "chain c {", "type filter hook forward priority 0;",
                'iifname "p-one" ether type ip meta l4proto 112 drop', "}", "}")  # fmt: skip
        until(lambda: two.state() == "active", 10, "two hears nothing and takes over")
        until(lambda: client.neighbour(ADDRESS) == two.node.mac(), 10, "the client believes two at some moment")
        net.nft("delete table bridge t")
        healed = time.monotonic()
        until(lambda: net.owners(VIP) == ["one"], 10, "one owner")
        assert within(time.monotonic() - healed, 0.3), "after an advertisement"
        until(lambda: client.neighbour(ADDRESS) == one.node.mac(), 4, "the client knows it")
        assert [it.transitions_total for it in one.hear().instances] == [2], "it was the owner all the time"


def test_f03_lost_announcements_are_repeated_in_both_forms(net: Lan, make: Make, runtime: Path) -> None:
    client = net.add("client")
    with pair(make) as (one, two):
        learn(client)
        net.nft("table bridge t {", "chain c {", "type filter hook forward priority 0;",
                f'iifname "p-two" ether type arp arp saddr ip {ADDRESS} drop', "}", "}")  # fmt: skip
        with Capture(net, runtime / "arp.pcap", "arp") as capture:
            one.send("release", "pair")
            until(lambda: two.state() == "active", 10, "two owns it")
            time.sleep(BURST_S[4])
            assert client.neighbour(ADDRESS) == one.node.mac(), "the first five are lost"
            net.nft("delete table bridge t")
            until(lambda: client.neighbour(ADDRESS) == two.node.mac(), 6, "one of the later ones arrives")
    frames = capture.fields(
        "arp.opcode", "arp.src.hw_mac", "arp.dst.proto_ipv4", only=f"arp.src.proto_ipv4 == {ADDRESS}"
    )
    ours = {opcode for opcode, mac, target in frames if (mac, target) == (two.node.mac(), ADDRESS)}
    assert ours == {"1", "2"}, "requests and replies"


def test_f04_announcements_leave_by_the_interface_of_the_vip(net: Lan, runtime: Path) -> None:
    node = net.add("one")
    net.add_bridge("br1")
    net.connect(node, "eth1", "q-one", "br1")
    node.ip("address", "add", "10.9.1.1/24", "dev", "eth1")
    inner = "10.9.1.100"
    vips = [vip(VIP), vip(f"{inner}/24", interface="eth1"), vip("10.9.2.100/32", STATIC, "eth1")]
    with (
        Capture(net, runtime / "br0.pcap", "arp") as outside,
        Capture(net, runtime / "br1.pcap", "arp", "br1") as inside,
        Fairlead(node, runtime / "one", vips, [instance()]) as one,
    ):
        until(lambda: one.state() == "active", 10, "it owns them")
        assert node.holds(f"{inner}/24", "eth1")
        time.sleep(BURST_S[3])
    for capture, interface, addresses in ((outside, "eth0", {ADDRESS}), (inside, "eth1", {inner, "10.9.2.100"})):
        frames = capture.fields("eth.src", "arp.src.hw_mac", "arp.src.proto_ipv4")
        announced = {frame for frame in frames if frame[2] != "0.0.0.0"}  # that is a probe
        assert {frame[2] for frame in announced} == addresses
        assert {mac for frame in announced for mac in frame[:2]} == {node.mac(interface)}


def test_f05_a_deleted_vip_comes_back(make: Make) -> None:
    with make("one") as one:
        until(lambda: one.state() == "active", 10, "it owns it")
        one.node.ip("address", "del", VIP, "dev", "eth0")
        until(lambda: one.holds(VIP), 10, "it is back")
        until(lambda: "vip_restored" in one.kinds(), 10, "it is told")
        assert one.report.vips[0].restored_total == 1


def test_f05_a_vip_that_is_deleted_again_and_again_goes_to_another_node(make: Make) -> None:
    with pair(make) as (one, two):
        end = time.monotonic() + 10
        while two.state() != "active" and time.monotonic() < end:
            one.node.ip("address", "del", VIP, "dev", "eth0", check=False)
            time.sleep(0.02)
        assert two.state() == "active"
        assert "vip_fight" in one.kinds()
        until(lambda: two.holds(VIP), 10, "it has it")


def test_f06_what_a_crash_left_behind_is_removed_at_the_start(net: Lan, make: Make) -> None:
    client = net.add("client")
    with pair(make) as (one, two):
        one.kill()
        until(lambda: two.state() == "active", 10, "two takes over")
        assert one.holds(VIP), "nobody is left to remove it"
        until(lambda: "vip_conflict" in two.kinds(), 15, "two sees that another one answers")
        assert one.node.mac() in next(e.message for e in two.events if e.kind == "vip_conflict")
        one.start()
        until(lambda: not one.holds(VIP), 10, "the next process removes it")
        assert one.state() == "backup"
        said = client.run("arping", "-c2", "-w3", "-I", "eth0", ADDRESS)
        assert {word for word in said.replace("[", " ").replace("]", " ").split() if word.count(":") == 5} == {
            two.node.mac().upper()
        }
        until(lambda: "vip_conflict_over" in two.kinds(), 15, "the alarm ends")


def test_f06_addresses_of_others_are_left_alone(net: Lan, make: Make) -> None:
    node = net.add("one")
    node.ip("address", "add", "10.9.0.77/24", "dev", "eth0")
    with make("one") as one:
        until(lambda: one.state() == "active", 10, "it owns its own")
        one.send("quit")
        until(lambda: not one.holds(VIP), 10, "which goes")
    assert node.holds("10.9.0.77/24")
    assert node.holds(f"{node.address}/24")


def test_f07_without_an_agent_everything_goes_on(net: Lan, make: Make) -> None:
    with pair(make) as (one, two):
        one.hang_up()
        time.sleep(1.0)
        assert net.owners(VIP) == ["one"]
        one.node.ip("address", "del", VIP, "dev", "eth0")
        until(lambda: one.holds(VIP), 10, "it still looks after its address")
        assert [it.transitions_total for it in two.hear().instances] == [1]


def test_f08_two_sites_on_one_vrid_keep_their_vips_and_say_so(net: Lan, make: Make) -> None:
    other = "10.9.0.200/24"
    with make("one", priority=100) as one, make("two", (other,), priority=200) as two:
        until(lambda: (one.state(), two.state()) == ("active", "active"), 10, "each owns its own")
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert (net.owners(VIP), net.owners(other)) == (["one"], ["two"])
            time.sleep(PAUSE_S)
        for router, who in ((one, "10.9.0.2"), (two, "10.9.0.1")):
            until(partial(_counts_conflicts, router), 10, "it counts")
            (event,) = [event for event in router.events if event.kind == "vrrp_conflict"]
            assert who in event.message


def test_f08_equal_priorities_have_one_owner(net: Lan, make: Make) -> None:
    with make("one") as one, make("two") as two:
        until(lambda: {one.state(), two.state()} == {"active", "backup"}, 10, "one owner")
        time.sleep(0.5)
        assert len(net.owners(VIP)) == 1


def test_f09_both_forms_of_checksum_are_understood(net: Lan, make: Make) -> None:
    with make("one", checksum=VrrpChecksum.RFC9568) as one:
        until(lambda: one.state() == "active", 10, "one owns it")
        with make("two", priority=200, preempt=True) as two:
            until(lambda: net.owners(VIP) == ["two"], 10, "two was told of by one, and one believes two")
            assert one.state() == "backup"
            assert (one.hear().invalid, two.hear().invalid) == ({}, {})


def test_f10_a_step_of_the_clock_moves_nothing(
    net: Lan, make: Make, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock jumps by an hour, forth and back; the monotonic one goes on."""
    step = runtime / "step"
    step.write_text("+0")
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(step))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")
    nodes = [net.add("one"), net.add("two")]
    with make("one", priority=200) as one, make("two", priority=100) as two:
        for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_NO_CACHE", "DONT_FAKE_MONOTONIC"):
            monkeypatch.delenv(name)
        until(lambda: (one.state(), two.state()) == ("active", "backup"), 10, "settled")
        for each in ("+3600", "-3600"):
            step.write_text(each)
            time.sleep(0.7)
            assert net.owners(VIP) == [nodes[0].name]
        assert [router.hear().instances[0].transitions_total for router in (one, two)] == [2, 1]


def ip_header(source: IPAddress, destination: IPAddress, ttl: int, length: int) -> bytes:
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0xC0, 20 + length, 0, 0, ttl, 112, 0, source.packed, destination.packed)


def forge(client: Node, *messages: tuple[IPAddress, int, bytes]) -> None:
    """Send messages with a source and a TTL of our choice from the client's node."""
    with client.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
        for source, ttl, data in messages:
            sock.sendto(ip_header(source, GROUP_V4, ttl, len(data)) + data, (str(GROUP_V4), 0))


def test_forged_advertisements_change_nothing_and_are_counted(net: Lan, make: Make) -> None:
    client = net.add("client")
    here, foreign = IPv4Address(client.address), IPv4Address("10.77.0.1")
    best = Advertisement(3, 51, 255, 10, (IPv4Address(ADDRESS),), ChecksumForm.RFC5798)
    good = {source: encode(best, source, GROUP_V4) for source in (here, foreign)}
    forged = {
        "ttl": (here, 254, good[here]),
        "source": (foreign, 255, good[foreign]),
        "checksum": (here, 255, good[here][:-1] + b"\x01"),
        "length": (here, 255, good[here] + b"\0" * 4),
        "short": (here, 255, good[here][:5]),
        "version": (here, 255, encode(Advertisement(2, 51, 255, 100, best.addresses), here, GROUP_V4)),
        "vrid": (here, 255, encode(Advertisement(3, 52, 255, 10, best.addresses), here, GROUP_V4)),
    }
    with pair(make) as (one, two):
        for _ in range(5):
            forge(client, *forged.values())
            time.sleep(0.1)
        for router in (one, two):
            until(partial(_has_counted, router, 35), 10, "all are counted")
            assert router.hear().invalid == {"eth0": dict.fromkeys(forged, 5)}
        assert net.owners(VIP) == ["one"]
        assert [router.report.instances[0].transitions_total for router in (one, two)] == [2, 1]


def test_with_peers_nobody_else_is_believed(net: Lan, runtime: Path) -> None:
    one, two, client = (net.add(name) for name in ("one", "two", "client"))
    best = Advertisement(3, 51, 255, 10, (IPv4Address(ADDRESS),), ChecksumForm.RFC5798)
    here = IPv4Address(client.address)
    settings = [instance(priority=200, peers=[two.address]), instance(priority=100, peers=[one.address])]
    with (
        Fairlead(one, runtime / "one", [vip(VIP)], settings[:1]) as first,
        Fairlead(two, runtime / "two", [vip(VIP)], settings[1:]) as second,
    ):
        until(lambda: (first.state(), second.state()) == ("active", "backup"), 10, "settled")
        for _ in range(5):
            forge(client, (here, 255, encode(best, here, GROUP_V4)))
        until(lambda: first.hear().invalid == {"eth0": {"source": 5}}, 10, "they are counted")
        assert net.owners(VIP) == ["one"]


def test_instances_of_a_group_move_together(net: Lan, runtime: Path) -> None:
    routers = []
    for name, priority in (("one", 200), ("two", 100)):
        node = net.add(name)
        if name == "one":
            net.add_bridge("br1")
        net.connect(node, "eth1", f"q-{name}", "br1")
        node.ip("address", "add", f"10.9.1.{node.number}/24", "dev", "eth1")
        vips = [vip(VIP, "out"), vip("10.9.1.100/24", "in", "eth1")]
        instances = [instance("out", priority=priority, sync="both")]
        instances.append(instance("in", interface="eth1", priority=priority, sync="both"))
        routers.append(Fairlead(node, runtime / name, vips, instances))
    with routers[0] as one, routers[1] as two:
        until(lambda: (one.state("out"), one.state("in")) == ("active", "active"), 10, "one owns both")
        until(lambda: (two.state("out"), two.state("in")) == ("backup", "backup"), 10, "two none")
        one.send("release", "in")
        until(lambda: (two.state("out"), two.state("in")) == ("active", "active"), 10, "both have moved")
        until(lambda: not one.node.holds("10.9.1.100/24", "eth1") and not one.holds(VIP), 10, "and have left")


def test_a_second_process_in_one_namespace_is_refused(net: Lan, make: Make, runtime: Path) -> None:
    with make("one") as one:
        until(lambda: one.state() == "active", 10, "it owns it")
        second = Fairlead(one.node, runtime / "second", [vip(VIP)], [])
        with pytest.raises(AssertionError, match="another fairlead owns VIPs"):
            second.start()
        second.kill()
        second.hang_up()
        assert one.holds(VIP)


def test_ipv6_neighbours_learn_the_new_owner(net: Lan, runtime: Path) -> None:
    six = ("fe80::100/64", "fd00:9::100/64")
    one, two, client = (net.add(name) for name in ("one", "two", "client"))
    with Fairlead(one, runtime / "one", [vip(each) for each in six], [instance(priority=200)]) as first:
        until(lambda: first.state() == "active", 10, "one owns it")
        with Fairlead(two, runtime / "two", [vip(each) for each in six], [instance()]) as second:
            until(lambda: second.state() == "backup", 10, "two is behind")
            client.speak_to("fd00:9::100")
            until(lambda: client.neighbour("fd00:9::100") == one.mac(), 10, "the client has learned it")
            until(lambda: second.hear().vips[1].answered_by == (one.mac(),), 15, "two sees who answers")
            first.send("release", "pair")
            until(lambda: client.neighbour("fd00:9::100") == two.mac(), 4, "the client knows the new owner")


def next_report_s(router: Fairlead) -> float:
    """How long until it reports again: about a second when nothing happens."""
    seen, began = router.hear(), time.monotonic()
    until(lambda: router.hear() is not seen, 10, "another report")
    return time.monotonic() - began


def test_the_agent_hears_at_once_that_an_address_was_handed_over(make: Make) -> None:
    """It waits for that before it lets packets go; the report of every second would come later."""
    with make("one") as one:
        vips, instances = one.vips, one.instances
        for _ in range(2):
            one.vips, one.instances = vips, instances
            one.tell()
            until(lambda: one.state() == "active", 10, "one owns it")
            while next_report_s(one) < TICK_S / 2:
                pass
            one.vips, one.instances = (), ()
            one.tell()
            until(lambda: one.hear().vips and not one.report.vips[0].held, TICK_S * 0.8, "it says that it has gone")
            assert not one.holds(VIP)


def test_priority_255_owns_an_address_that_is_its_own(net: Lan, make: Make) -> None:
    node = net.add("one")
    own = f"{node.address}/24"
    with make("one", (own,), priority=255) as one:
        until(lambda: one.state() == "active", 10, "at once")
        one.send("quit")
        assert one.process is not None
        one.process.wait(10)
    assert node.holds(own), "what was there before stays"


def test_the_process_keeps_few_rights(make: Make) -> None:
    with make("one") as one:
        until(lambda: one.state() == "backup", 10, "it runs")
        status = Path(f"/proc/{one.pid}/status").read_text()
        rights = {line.split(":")[0]: line.split(":")[1].strip() for line in status.splitlines() if ":" in line}
        assert int(rights["CapEff"], 16) == int(rights["CapPrm"], 16) == 1 << 12 | 1 << 13
        assert rights["NoNewPrivs"] == "1"
        assert os.sched_getscheduler(one.pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
