# SPDX-License-Identifier: Apache-2.0
"""What ``fairlead doctor --real-server`` says about a server of dsr or tunnel: every finding, and its absence."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from fairlead.config.load import Source, load
from fairlead.model.configuration import Configuration
from fairlead.model.host import Finding, HostFacts, Nic, Way, XdpProgram
from fairlead.model.reasons import HostCheck, Severity
from fairlead.policy import real_server

VIP, VIP6, NEAR, FAR = map(ip_address, ("192.0.2.10", "2001:db8::10", "192.0.2.21", "10.7.0.10"))
ERROR, WARNING, OK = Severity


def configuration(
    forwarding: str = "dsr", server: str = "192.0.2.21:80", listen: str = "192.0.2.10:80"
) -> Configuration:
    text = f"""
services: {{web: {{listen: "{listen}", pool: web, forwarding: {forwarding}}}}}
pools: {{web: {{servers: ["{server}"], health: none}}}}
vips: {{192.0.2.10/24: {{interface: eth0, owner: static}}}}
"""
    return load([Source("test", text.encode())], {}).configuration


def host(*, vip_on: str = "lo", prefix: int = 32, program: bool = True, **sysctls: int) -> HostFacts:
    """A server with nothing to say against it: on the clients' link with eth0, on that of tunnels with eth1."""
    nics = {
        "lo": Nic("lo", loopback=True),
        "eth0": Nic("eth0", addresses=((NEAR, 24),)),
        "eth1": Nic("eth1", addresses=((FAR, 24),), program=XdpProgram(1) if program else None),
        "tunl0": Nic("tunl0", kind="" if program else "ipip", arp=False),
    }
    if vip_on:
        nics[vip_on] = replace(nics[vip_on], addresses=((VIP, prefix), (VIP6, 128), *nics[vip_on].addresses))
    switches = {"net.ipv4.conf.all.arp_ignore": 1, "net.ipv4.conf.all.arp_announce": 2}
    switches |= {f"net.ipv4.conf.{name.replace('__', '.')}": value for name, value in sysctls.items()}
    return HostFacts(nics=nics, sysctls=switches, default={4: Way("eth0", gateway=True), 6: Way("eth0", gateway=True)})


def findings(facts: HostFacts, name: HostCheck, setup: Configuration | None = None) -> list[Finding]:
    return [it for it in real_server.examine(setup or configuration(), facts) if it.name is name]


def the(facts: HostFacts, name: HostCheck, setup: Configuration | None = None) -> Finding:
    return findings(facts, name, setup)[0]


TUNNEL = configuration("tunnel", "10.7.0.10:80")


@pytest.mark.parametrize("setup", [configuration(), TUNNEL])
def test_a_server_without_a_fault_has_nothing_but_ok(setup: Configuration) -> None:
    found = real_server.examine(setup, host())
    assert {it.severity for it in found} == {OK}
    assert {it.name for it in found} >= {HostCheck.REAL_SERVER, HostCheck.VIP_PLACE, HostCheck.ARP_IGNORE}


@pytest.mark.parametrize("setup", [configuration("nat"), configuration("dsr", "192.0.2.99:80")])
def test_a_machine_that_is_no_server_is_told_so(setup: Configuration) -> None:
    (found,) = real_server.examine(setup, host())
    assert (found.name, found.severity) == (HostCheck.REAL_SERVER, ERROR)


@pytest.mark.parametrize(
    ("facts", "fix"),
    [
        (host(vip_on=""), "ip address add 192.0.2.10/32 dev lo"),
        (
            host(vip_on="eth1", prefix=24),
            "ip address del 192.0.2.10/24 dev eth1 && ip address add 192.0.2.10/32 dev lo",
        ),
        (host(prefix=24), "ip address del 192.0.2.10/24 dev lo && ip address add 192.0.2.10/32 dev lo"),
        (host(vip_on="tunl0"), ""),
        (host(), ""),
    ],
)
def test_the_vip_is_there_without_arp(facts: HostFacts, fix: str) -> None:
    found = the(facts, HostCheck.VIP_PLACE)
    assert (found.severity, found.subject, found.fix) == (ERROR if fix else OK, "192.0.2.10", fix)


def test_f13_arp_is_kept_quiet_on_interfaces_that_face_the_vip() -> None:
    loud = host(all__arp_ignore=0, all__arp_announce=0, eth1__arp_ignore=1, eth1__arp_announce=2)
    for setup in (configuration(), TUNNEL):
        (ignore,) = findings(loud, HostCheck.ARP_IGNORE, setup)
        assert (ignore.severity, ignore.fix) == (ERROR, "sysctl -w net.ipv4.conf.eth0.arp_ignore=1")
        (announce,) = findings(loud, HostCheck.ARP_ANNOUNCE, setup)
        assert (announce.severity, announce.fix) == (ERROR, "sysctl -w net.ipv4.conf.eth0.arp_announce=2")


def test_f13_the_link_of_a_dsr_server_faces_the_vip_even_in_another_network() -> None:
    loud = host(all__arp_ignore=0, eth0__arp_ignore=1)
    (_, other) = sorted(findings(loud, HostCheck.ARP_IGNORE, configuration("dsr", "10.7.0.10:80")), key=str)
    assert {it.subject for it in findings(loud, HostCheck.ARP_IGNORE, configuration("dsr", "10.7.0.10:80"))} == {
        "net.ipv4.conf.eth0.arp_ignore",
        "net.ipv4.conf.eth1.arp_ignore",
    }
    assert other.name is HostCheck.ARP_IGNORE


def test_neighbours_of_ipv6_are_answered_by_interface_so_there_is_nothing_to_set() -> None:
    six = configuration(listen="[2001:db8::10]:80", server="[2001:db8::21]:80")
    facts = host(all__arp_ignore=0)
    facts = replace(facts, nics={**facts.nics, "eth0": Nic("eth0", addresses=((ip_address("2001:db8::21"), 64),))})
    assert {it.name for it in real_server.examine(six, facts)} == {HostCheck.REAL_SERVER, HostCheck.VIP_PLACE}


def test_f32_strict_where_tunnels_end_is_named_with_its_fix() -> None:
    for strict in (host(eth1__rp_filter=1), host(all__rp_filter=1)):
        (found,) = findings(strict, HostCheck.RP_FILTER, TUNNEL)
        assert (found.severity, found.subject) == (ERROR, "net.ipv4.conf.eth1.rp_filter")
        assert found.fix == "sysctl -w net.ipv4.conf.eth1.rp_filter=2"
    found = the(host(program=False, tunl0__rp_filter=1), HostCheck.RP_FILTER, TUNNEL)
    assert found.fix == "sysctl -w net.ipv4.conf.tunl0.rp_filter=2"


def test_f32_strict_on_the_link_of_a_dsr_server_matters_when_it_answers_elsewhere() -> None:
    strict = host(all__rp_filter=1)
    (found,) = findings(strict, HostCheck.RP_FILTER)
    assert found.severity is OK
    away = replace(strict, default={4: Way("eth1", gateway=True)})
    assert the(away, HostCheck.RP_FILTER).subject == "net.ipv4.conf.eth0.rp_filter"
    assert the(away, HostCheck.RP_FILTER).severity is ERROR


def test_f32_the_network_of_the_vip_is_a_way_back_as_well() -> None:
    facts = replace(host(eth1__rp_filter=1), default={})
    assert the(facts, HostCheck.RP_FILTER, TUNNEL).severity is ERROR
    elsewhere = replace(facts, nics={**facts.nics, "eth0": Nic("eth0")})
    assert the(elsewhere, HostCheck.RP_FILTER, TUNNEL).severity is OK, "no way is known"
    routed = replace(elsewhere, ways={ip_address("192.0.2.9"): Way("eth0", gateway=True)})
    assert the(routed, HostCheck.RP_FILTER, TUNNEL).severity is ERROR


def test_something_takes_packets_out_of_tunnels() -> None:
    assert the(host(program=False), HostCheck.DECAPSULATION, TUNNEL).message == "by tunl0"
    assert "eth1" in the(host(), HostCheck.DECAPSULATION, TUNNEL).message
    facts = host(program=False)
    nothing = replace(facts, nics={name: nic for name, nic in facts.nics.items() if name != "tunl0"})
    found = the(nothing, HostCheck.DECAPSULATION, TUNNEL)
    assert (found.severity, found.fix) == (ERROR, "modprobe ipip && ip link set dev tunl0 up")
    assert not findings(nothing, HostCheck.DECAPSULATION)
