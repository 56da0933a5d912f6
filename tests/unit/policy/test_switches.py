# SPDX-License-Identifier: Apache-2.0
"""What sysctls do to packets: the effective value, the verdict, and a fix that changes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fairlead.model.host import Finding
from fairlead.model.reasons import HostCheck, Severity
from fairlead.policy import switches

Decide = Callable[[dict[str, int]], Finding]


def values(name: str, everywhere: int, here: int) -> dict[str, int]:
    return {f"net.ipv4.conf.all.{name}": everywhere, f"net.ipv4.conf.eth0.{name}": here}


def after(sysctls: dict[str, int], fix: str) -> dict[str, int]:
    """The host once the printed command was run."""
    program, option, *settings = fix.split()
    assert (program, option) == ("sysctl", "-w")
    return sysctls | {name: int(value) for name, _, value in (it.partition("=") for it in settings)}


def rp_filter(sysctls: dict[str, int]) -> Finding:
    return switches.rp_filter(sysctls, "eth0", ["eth1"])


def arp_ignore(sysctls: dict[str, int]) -> Finding:
    return switches.arp_ignore(sysctls, "eth0")


def arp_announce(sysctls: dict[str, int]) -> Finding:
    return switches.arp_announce(sysctls, "eth0")


def arp_accept(sysctls: dict[str, int]) -> Finding:
    return switches.arp_accept(sysctls, "eth0")


@pytest.mark.parametrize(
    ("decide", "name", "good", "bad"),
    [
        (rp_filter, "rp_filter", [(0, 0), (2, 1), (1, 2), (0, 2), (2, 0)], [(1, 1), (0, 1), (1, 0)]),
        (arp_ignore, "arp_ignore", [(1, 0), (0, 1), (2, 1), (0, 8)], [(0, 0), (0, 3), (3, 1), (4, 0)]),
        (arp_announce, "arp_announce", [(2, 0), (0, 2)], [(0, 0), (1, 1), (0, 1)]),
        (arp_accept, "arp_accept", [(0, 0)], [(1, 0), (0, 1), (1, 1)]),
    ],
)
def test_the_larger_of_two_values_counts_and_the_fix_is_enough(
    decide: Decide, name: str, good: list[tuple[int, int]], bad: list[tuple[int, int]]
) -> None:
    for both in good:
        assert decide(values(name, *both)).severity is Severity.OK, both
    for both in bad:
        found = decide(values(name, *both))
        assert found.severity is (Severity.WARNING if decide is arp_accept else Severity.ERROR), both
        assert found.name == HostCheck(name)
        assert found.subject == f"net.ipv4.conf.eth0.{name}"
        assert decide(after(values(name, *both), found.fix)).severity is Severity.OK, found.fix


def test_a_fix_leaves_other_interfaces_alone_where_it_can() -> None:
    assert rp_filter(values("rp_filter", 1, 1)).fix == "sysctl -w net.ipv4.conf.eth0.rp_filter=2"
    assert arp_ignore(values("arp_ignore", 0, 0)).fix == "sysctl -w net.ipv4.conf.eth0.arp_ignore=1"
    assert arp_announce(values("arp_announce", 0, 1)).fix == "sysctl -w net.ipv4.conf.eth0.arp_announce=2"


def test_strict_does_no_harm_where_routes_to_clients_leave() -> None:
    strict = values("rp_filter", 1, 0)
    for ways in ([], ["eth0"], [""], ["eth0", ""]):
        assert switches.rp_filter(strict, "eth0", ways).severity is Severity.OK
    found = switches.rp_filter(strict, "eth0", ["eth2", "eth0", "eth1"])
    assert found.severity is Severity.ERROR
    assert "eth1, eth2" in found.message


@pytest.mark.parametrize(
    ("version", "everywhere", "here", "fix"),
    [
        (4, 0, 0, "sysctl -w net.ipv4.ip_forward=1"),
        (4, 1, 0, "sysctl -w net.ipv4.conf.eth0.forwarding=1"),
        (6, 0, 0, "sysctl -w net.ipv6.conf.all.forwarding=1"),
        (6, 1, 0, "sysctl -w net.ipv6.conf.eth0.forwarding=1"),
        (4, 0, 1, ""),
        (6, 1, 1, ""),
    ],
)
def test_forwarding_is_judged_by_interface_and_family(version: int, everywhere: int, here: int, fix: str) -> None:
    sysctls = {f"net.ipv{version}.conf.{where}.forwarding": v for where, v in (("all", everywhere), ("eth0", here))}
    found = switches.forwarding(sysctls, "eth0", version)
    assert (found.severity, found.fix) == (Severity.ERROR if fix else Severity.OK, fix)
    assert found.subject == f"net.ipv{version}.conf.eth0.forwarding"


def test_a_dot_in_the_name_of_an_interface_is_a_slash_in_a_sysctl() -> None:
    strict = {"net.ipv4.conf.eth0/100.rp_filter": 1}
    assert switches.rp_filter(strict, "eth0.100", ["eth1"]).fix == "sysctl -w net.ipv4.conf.eth0/100.rp_filter=2"
    assert "net.ipv4.conf.eth0/100.rp_filter" in switches.names("eth0.100")
