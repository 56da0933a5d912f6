# SPDX-License-Identifier: Apache-2.0
"""Two nodes and one VIP: who owns it, how it moves, what operators see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.netns import Lan, Node
from support.vipnode import VIP, VipNode, configuration
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]
Start = Callable[[Node, str], VipNode]


def pair(net: Lan, daemon: Start, **keys: Any) -> tuple[VipNode, VipNode]:
    """A node of priority 200 that owns the VIP, and one of priority 100."""
    first = daemon(net.add("one"), configuration(priority=200, **keys))
    until(lambda: net.owners(VIP) == ["one"], 10, "the first owns the VIP")
    second = daemon(net.add("two"), configuration(priority=100, **keys))
    until(lambda: second.vrrp().get("state") == "backup", 10, "the second is a backup")
    return first, second


def test_one_owner_and_both_say_so(net: Lan, daemon: Start) -> None:
    first, second = pair(net, daemon)
    until(lambda: first.is_active() and second.vrrp()["active"] == "10.9.0.1", 10, "both know the owner")
    assert first.vip()["held"]
    assert not second.vip()["held"]
    until(lambda: second.vip()["answered_by"] == [first.node.mac()], 15, "the second sees who answers")
    assert not second.vip()["conflict"]
    assert first.metric("vip_owner", vip=VIP) == 1
    assert second.metric("vip_owner", vip=VIP) == 0
    assert second.metric("vrrp_state", instance="pair", state="backup") == 1


def test_release_moves_the_vip_and_claim_brings_it_back(net: Lan, daemon: Start) -> None:
    first, second = pair(net, daemon)
    first.move("release")
    until(lambda: net.owners(VIP) == ["two"] and second.is_active(), 10, "the second owns the VIP")
    until(lambda: first.vrrp()["released"], 10, "the first knows that it was released")
    first.move("claim")
    until(lambda: net.owners(VIP) == ["one"] and first.is_active(), 10, "the first owns it again")
    until(lambda: first.vrrp()["priority"] == 200, 10, "with its own priority")
    second.move("claim")
    until(lambda: net.owners(VIP) == ["two"], 10, "a claim beats a higher priority")
    until(lambda: second.vrrp()["priority"] == 100, 10, "and keeps what it took")
    assert net.owners(VIP) == ["two"]


def test_an_orderly_end_hands_over_and_leaves_nothing_behind(net: Lan, daemon: Start) -> None:
    first, second = pair(net, daemon)
    first.stop()
    until(lambda: net.owners(VIP) == ["two"], 10, "the second owns the VIP")
    assert first.vrrp_pid() == 0
    assert second.events("vrrp_active")
