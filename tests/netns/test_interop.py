# SPDX-License-Identifier: Apache-2.0
"""Beside real routers of others: one owner at all times, whoever comes and goes, and advertisements that are valid."""

from __future__ import annotations

import itertools
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from fairlead.model.vip import VrrpInstance
from support.capture import Capture
from support.netns import Lan, Node
from support.vrrp import Fairlead, Frr, Keepalived, instance, vip
from support.wait import PAUSE_S, until

pytestmark = [pytest.mark.root, pytest.mark.system]
V4 = (vip("10.9.0.100/24"),)
V6 = (vip("fe80::100/64"), vip("fd00:9::100/64"))
Router = Fairlead | Keepalived | Frr


class Cell(NamedTuple):
    """One row of the matrix."""

    peer: str
    version: int
    family: int
    way: str
    preempt: bool

    def __str__(self) -> str:
        preempt = "preempt" if self.preempt else "nopreempt"
        return f"{self.peer}-v{self.version}-ipv{self.family}-{self.way}-{preempt}"


CELLS = [
    Cell(peer, version, family, way, preempt)
    for peer, (version, family), way, preempt in itertools.product(
        ("keepalived", "frr", "fairlead"), ((2, 4), (3, 4), (3, 6)), ("multicast", "unicast"), (True, False)
    )
    if not (peer == "frr" and way == "unicast")  # FRR 8.4 speaks multicast only
]


def router(kind: str, node: Node, directory: Path, settings: VrrpInstance, family: int) -> Router:
    vips = V4 if family == 4 else V6
    if kind == "keepalived":
        return Keepalived(node, directory / node.name, vips, settings)
    if kind == "frr":
        return Frr(node, directory / node.name, vips, settings)
    return Fairlead(node, directory / node.name, vips, [settings])


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_one_owner(cell: Cell, net: Lan, runtime: Path) -> None:
    peer, version, family, way, preempt = cell
    one, two = net.add("one"), net.add("two")
    interval_s = 1.0 if version == 2 else 0.1
    settings = instance(version=version, interval_cs=round(interval_s * 100), preempt=preempt)
    addresses = (one.address, two.address) if family == 4 else (one.address6, two.address6)
    peers = [instance(peers=[address]).peers if way == "unicast" else () for address in addresses]
    theirs = router(peer, one, runtime, replace(settings, priority=100, peers=peers[1]), family)
    ours = Fairlead(two, runtime / "two", V4 if family == 4 else V6, [replace(settings, priority=200, peers=peers[0])])
    address = str((V4 if family == 4 else V6)[0])
    takeover_s = 4 * interval_s + 10

    def owners() -> list[str]:
        return [name for name, it in (("theirs", theirs), ("ours", ours)) if it.holds(address)]

    def stays(owner: str) -> None:
        """For some advertisements, at every look."""
        end = time.monotonic() + 4 * interval_s
        while time.monotonic() < end:
            assert owners() == [owner]
            time.sleep(PAUSE_S)

    with Capture(net, runtime / "frames.pcap", "proto 112 or ip6 proto 112") as capture, theirs:
        until(lambda: theirs.holds(address), takeover_s, "the other one alone owns the VIP")
        with ours:
            if preempt:
                until(lambda: owners() == ["ours"], takeover_s, "the better one takes over")
                stays("ours")
                ours.send("quit")
                until(lambda: owners() == ["theirs"], takeover_s, "the other takes over when ours ends in order")
                assert ours.process is not None
                ours.process.wait(10)
            else:
                until(lambda: ours.state() == "backup", 10, "ours is a backup")
                stays("theirs")
                theirs.end(signal.SIGTERM) if not isinstance(theirs, Fairlead) else theirs.send("quit")
                until(lambda: ours.holds(address), takeover_s, "ours takes over when the other ends in order")
                assert ours.hear().invalid == {}
                assert "vrrp_conflict" not in ours.kinds()
    judge(capture, family, version)


def judge(capture: Capture, family: int, version: int) -> None:
    """Both sides' advertisements are valid for a third party."""
    source, ttl = ("ip.src", "ip.ttl") if family == 4 else ("ipv6.src", "ipv6.hlim")
    frames = capture.fields(source, ttl, "vrrp.version", "vrrp.checksum.status", "_ws.malformed", only="vrrp")
    assert len({frame[0] for frame in frames}) == 2, "both have advertised"
    for frame in frames:
        assert frame[1:4] == ("255", str(version), "1"), frame
        assert frame[4] == ""
