# SPDX-License-Identifier: Apache-2.0
"""A node whose XDP program somebody takes away mends that, or gives its VIPs up when it cannot."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest

from fairlead.dataplane.xdp import pins
from support.pairbed import GATEWAY, VIP, Scene, pair, scene
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(120)]


def detach_by_hand(it: Scene) -> None:
    """The XDP program of the outer interface of ``one``."""
    with it.one.node.inside():
        path = pins.namespace_root() / f"{pins.LINK}{socket.if_nametoindex('eth0')}"
    subprocess.run(["bpftool", "link", "detach", "pinned", str(path)], check=True, capture_output=True)


def carries_its_program(it: Scene) -> bool:
    return "prog/xdp" in it.one.node.ip("link", "show", "dev", "eth0")


def test_a_program_that_was_detached_by_hand(runtime: Path) -> None:
    """It comes back before the node would give its VIPs up; when another program has its place, the VIPs move."""
    with pair(runtime) as bed, scene(bed, connections=10) as it:
        at = time.monotonic()
        detach_by_hand(it)
        until(lambda: carries_its_program(it), 10, "it is back")
        until(lambda: it.one.events("xdp_lost"), 10, "and the operator was told")
        assert it.owners.of(VIP) == {"one"}
        assert it.owners.most(VIP, at) == 1
        detach_by_hand(it)
        foreign = bed.attach(it.one.node, "eth0", "pass_all")
        until(lambda: it.owners.of(VIP) == {"two"} == it.owners.of(GATEWAY), 20, "the VIPs have moved")
        assert "another XDP program" in it.one.vrrp()["why"]
        foreign.close()
        until(lambda: carries_its_program(it), 30, "it is back")
        until(lambda: it.one.vrrp()["priority"] == 200, 30, "the node has recovered")
