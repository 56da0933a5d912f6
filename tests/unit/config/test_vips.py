# SPDX-License-Identifier: Apache-2.0
"""``vips:`` and ``vrrp:``: every key arrives, and what does not fit together is told at its place."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fairlead.model.vip import Vip, VrrpChecksum, VrrpInstance
from support.configs import assert_problem, configuration, loaded, marked, problems

SERVICES = """
services: {s: {listen: "192.0.2.10:80", pool: p}}
pools: {p: {servers: ["10.0.0.1:80"]}}
"""


def test_every_key_arrives() -> None:
    read = configuration(
        """
vips:
  192.0.2.10/24: {interface: eth0, owner: pair}
  "2001:db8::10/64": {interface: eth1, owner: plain}
  "2001:db8::11/64": {interface: eth1, owner: static}
vrrp:
  pair:
    {interface: eth0, vrid: 7, version: 2, priority: 150, advert_interval: 2s, preempt: {delay: 30s},
     peers: [192.0.2.2], follow: [s], checksum: rfc9568, sync: both}
  plain: {interface: eth1, vrid: 8, sync: both, priority: 150}
"""
        + SERVICES
    )
    assert read.vips[0] == Vip(ip_address("192.0.2.10"), 24, "eth0", "pair")
    assert [str(vip) for vip in read.vips] == ["192.0.2.10/24", "2001:db8::10/64", "2001:db8::11/64"]
    peers = (ip_address("192.0.2.2"),)
    assert read.vrrp["pair"] == VrrpInstance(
        "pair", "eth0", 7, 2, 150, 200, True, 30.0, peers, ("s",), VrrpChecksum.RFC9568, "both"
    )
    assert read.vrrp["plain"] == VrrpInstance("plain", "eth1", 8, priority=150, sync="both")


VIP = "vips: {192.0.2.10/24: {interface: eth0, owner: a}}\n"
SIX = 'vips: {"2001:db8::1/64": {interface: eth0, owner: a}}\n'
ROWS = [
    ("vrrp: {§a: {interface: eth0, vrid: 1}}", "vrrp.a", "no VIP on eth0"),
    (VIP + "vrrp: {§a: {interface: eth1, vrid: 1}}", "vrrp.a", "no VIP on eth1"),
    (
        VIP + "vrrp: {a: {interface: eth0, vrid: 1, version: 2, advert_interval: §1500ms}}",
        "vrrp.a.advert_interval",
        "whole",
    ),
    (VIP + "vrrp: {a: {interface: eth0, vrid: 1, advert_interval: §15ms}}", "vrrp.a.advert_interval", "`10ms`"),
    (SIX + "vrrp: {a: {interface: eth0, vrid: 1, version: §2}}", "vrrp.a.version", "IPv4 only"),
    (SIX + "vrrp: {a: {interface: eth0, vrid: 1, peers: [fe80::1, §192.0.2.1]}}", "vrrp.a.peers[1]", "family"),
    ("vips: {127.0.0.9/8: {interface: §lo, owner: a}}\nvrrp: {a: {interface: eth0, vrid: 1}}", "", "no neighbours"),
    ("vrrp: {§static: {interface: eth0, vrid: 1}}", "vrrp.static", "use another"),
]


@pytest.mark.parametrize(("text", "path", "said"), ROWS, ids=[row[2] for row in ROWS])
def test_what_does_not_fit(text: str, path: str, said: str) -> None:
    clean, places = marked(text + SERVICES)
    found = [problem for problem in problems(clean) if said in problem.message]
    assert [(problem.line, problem.column) for problem in found] == places
    assert not path or found[0].path == path


def test_a_vrid_is_unique_on_its_interface_in_its_family() -> None:
    text = """
vips:
  192.0.2.1/24: {interface: eth0, owner: a}
  192.0.2.2/24: {interface: eth0, owner: b}
  192.0.2.3/24: {interface: eth1, owner: c}
  "2001:db8::1/64": {interface: eth0, owner: d}
vrrp:
  a: {interface: eth0, vrid: 1}
  b: {interface: eth0, vrid: §1}
  c: {interface: eth1, vrid: 1}
  d: {interface: eth0, vrid: 1}
"""
    assert_problem(text + SERVICES, "vrrp.b.vrid", "is the vrid of `a` already")


def test_instances_that_move_together_have_one_priority() -> None:
    text = """
vips:
  192.0.2.1/24: {interface: eth0, owner: a}
  192.0.2.3/24: {interface: eth1, owner: b}
vrrp:
  a: {interface: eth0, vrid: 1, sync: g}
  b: {interface: eth1, vrid: 1, sync: g, priority: §101}
"""
    assert_problem(text + SERVICES, "vrrp.b.priority", "one priority")


def test_a_group_of_one_is_odd() -> None:
    text = VIP + "vrrp: {a: {interface: eth0, vrid: 1, sync: g}}\n" + SERVICES
    assert any("no other instance" in problem.message for problem in loaded(text).warnings)


def test_an_address_that_is_none_is_one_error_and_no_more() -> None:
    """Found by mutated examples: what only a readable address could tell is not asked."""
    text = "vips: {tcp192.0.2.10/24: {interface: eth0, owner: a}}\nvrrp: {a: {interface: eth0, vrid: 1}}\n" + SERVICES
    (problem,) = problems(text)
    assert "`tcp192.0.2.10` is not an IP address" in str(problem)
