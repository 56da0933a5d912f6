# SPDX-License-Identifier: Apache-2.0
"""What ``fairlead doctor`` says about the host of a balancer: every finding, and its absence."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from fairlead.config.load import Source, load
from fairlead.model.configuration import Configuration
from fairlead.model.host import Finding, HostFacts, Nic, VethPeer, Way, XdpProgram
from fairlead.model.reasons import HostCheck, Severity
from fairlead.policy import doctor

ALL_RIGHTS = frozenset({"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"})
VIP, NEAR, FAR, FAR6 = map(ip_address, ("192.0.2.10", "192.0.2.21", "10.7.0.10", "fd00:7::10"))
ERROR, WARNING, OK = Severity


def configuration(
    forwarding: str = "nat", server: str = "10.7.0.10:80", more: str = "", vips: str = "", port: int = 80
) -> Configuration:
    text = f"""
services: {{web: {{listen: "192.0.2.10:{port}", pool: web, forwarding: {forwarding}}}}}
pools: {{web: {{servers: ["{server}"], health: none}}}}
vips: {{{vips or "192.0.2.10/24: {interface: eth0, owner: static}"}}}
{more}
"""
    return load([Source("test", text.encode())], {}).configuration


def host(**changes: object) -> HostFacts:
    """A host with nothing to say against it: clients at eth0, servers behind eth1."""
    well = HostFacts(
        nics={
            "lo": Nic("lo", loopback=True, mtu=65536),
            "eth0": Nic("eth0", addresses=((ip_address("192.0.2.2"), 24), (VIP, 24)), lro=False, gro=True),
            "eth1": Nic("eth1", mtu=9000, addresses=((ip_address("10.7.0.1"), 24),), lro=False, gro=True),
        },
        sysctls={
            f"net.ipv{version}.conf.{where}.forwarding": 1 for version in (4, 6) for where in ("all", "eth0", "eth1")
        },
        ways={NEAR: Way("eth0"), FAR: Way("eth1"), FAR6: Way("eth1", gateway=True)},
        default={4: Way("eth0", gateway=True), 6: Way()},
        carriers=("eth0", "eth1"),
        owners={VIP: ()},
        capabilities=ALL_RIGHTS,
        release=(6, 1),
        pass_program="/lib/pass.bpf.o",
    )
    return replace(well, **changes)  # type: ignore[arg-type]


def with_nic(name: str = "eth0", **changes: object) -> HostFacts:
    well = host()
    return replace(well, nics={**well.nics, name: replace(well.nics[name], **changes)})  # type: ignore[arg-type]


def findings(facts: HostFacts, name: HostCheck, setup: Configuration | None = None) -> list[Finding]:
    return [it for it in doctor.examine(setup or configuration(), facts) if it.name is name]


def the(facts: HostFacts, name: HostCheck, setup: Configuration | None = None) -> Finding:
    """The worst finding of a name."""
    return findings(facts, name, setup)[0]


def test_a_host_without_a_fault_has_nothing_but_ok() -> None:
    found = doctor.examine(configuration(), host())
    assert {it.severity for it in found} == {OK}
    assert all(it.fix == "" for it in found)
    assert {it.name for it in found} >= {HostCheck.FORWARDING, HostCheck.RP_FILTER, HostCheck.VIP_OWNERS}


def test_the_worst_comes_first_and_nothing_twice() -> None:
    facts = replace(with_nic(lro=True), bpffs=False, libbpf="not there")
    found = doctor.examine(configuration(), facts)
    assert [it.severity for it in found if it.severity is not OK] == [ERROR, ERROR, WARNING]
    assert len(set(found)) == len(found)


def test_what_two_services_share_is_said_once() -> None:
    one = configuration()
    web = one.services["web"]
    two = replace(one, services={"web": web, "more": replace(web, name="more")})
    assert doctor.examine(two, host()) == doctor.examine(one, host())


@pytest.mark.parametrize(
    ("setup", "missing", "subject"),
    [
        (configuration(), "CAP_BPF", "the kernel's data plane"),
        (configuration(), "CAP_PERFMON", "the kernel's data plane"),
        (configuration("proxy"), "CAP_NET_RAW", "vips"),
        (configuration("proxy"), "CAP_NET_BIND_SERVICE", "ports of services"),
    ],
)
def test_missing_capabilities_are_named(setup: Configuration, missing: str, subject: str) -> None:
    found = the(host(capabilities=ALL_RIGHTS - {missing}), HostCheck.CAPABILITIES, setup)
    assert (found.severity, found.subject) == (ERROR, subject)
    assert found.fix == f"AmbientCapabilities={missing}"


def test_capabilities_that_nothing_needs_are_not_asked_for() -> None:
    facts = host(capabilities=ALL_RIGHTS - {"CAP_NET_BIND_SERVICE", "CAP_BPF"})
    assert the(facts, HostCheck.CAPABILITIES, configuration("proxy", port=8080)).severity is OK
    assert (
        the(replace(facts, capabilities=ALL_RIGHTS - {"CAP_NET_BIND_SERVICE"}), HostCheck.CAPABILITIES).severity is OK
    )
    free = replace(facts, sysctls={"net.ipv4.ip_unprivileged_port_start": 0})
    assert the(free, HostCheck.CAPABILITIES, configuration("proxy")).severity is OK


@pytest.mark.parametrize(
    ("facts", "name", "severity", "fix"),
    [
        (host(release=(5, 17)), HostCheck.KERNEL, ERROR, ""),
        (host(release=(5, 18)), HostCheck.KERNEL, OK, ""),
        (host(libbpf="libbpf.so.1 is not installed"), HostCheck.LIBBPF, ERROR, "apt-get install libbpf1"),
        (host(program=False), HostCheck.XDP_PROGRAM, ERROR, "apt-get install clang libbpf-dev"),
        (host(bpffs=False), HostCheck.BPFFS, WARNING, "mount -t bpf bpf /sys/fs/bpf"),
        (host(missing=("eth7",)), HostCheck.INTERFACES, ERROR, ""),
        (host(carriers=()), HostCheck.INTERFACES, ERROR, ""),
        (with_nic(lro=True), HostCheck.LRO, ERROR, "ethtool -K eth0 lro off"),
    ],
)
def test_prerequisites_of_the_kernels_data_plane(
    facts: HostFacts, name: HostCheck, severity: Severity, fix: str
) -> None:
    found = the(facts, name)
    assert (found.severity, found.fix) == (severity, fix)
    assert not findings(facts, name, configuration("proxy")), "a proxy does not need it"


def test_f23_gro_matters_in_generic_mode_alone() -> None:
    generic = configuration(more="xdp: {mode: generic}")
    assert not findings(host(), HostCheck.GRO)
    assert the(host(), HostCheck.GRO, generic).fix == "ethtool -K eth0 gro off"
    assert the(with_nic(generic=True), HostCheck.GRO).severity is ERROR
    assert the(with_nic(generic=True, gro=False), HostCheck.GRO).severity is OK
    assert not findings(with_nic(generic=True, gro=None), HostCheck.GRO), "what cannot be seen is not judged"


def test_forwarding_is_asked_for_the_families_of_the_services() -> None:
    found = the(host(sysctls={"net.ipv4.conf.eth1.forwarding": 0}), HostCheck.FORWARDING)
    assert (found.severity, found.subject) == (ERROR, "net.ipv4.conf.eth1.forwarding")
    assert the(host(sysctls={"net.ipv6.conf.eth1.forwarding": 0}), HostCheck.FORWARDING).severity is OK


def test_rp_filter_matters_where_clients_come_in_and_replies_leave_elsewhere() -> None:
    strict = {"net.ipv4.conf.eth0.rp_filter": 1, "net.ipv4.conf.eth1.rp_filter": 1}
    assert the(host(sysctls=strict), HostCheck.RP_FILTER).severity is OK
    found = the(host(sysctls=strict, default={4: Way("eth1", gateway=True)}), HostCheck.RP_FILTER)
    assert (found.severity, found.subject) == (ERROR, "net.ipv4.conf.eth0.rp_filter")
    assert found.fix == "sysctl -w net.ipv4.conf.eth0.rp_filter=2"
    assert "eth1" in found.message


def test_arp_matters_where_vips_are_on_several_interfaces() -> None:
    two = configuration(
        vips="192.0.2.10/24: {interface: eth0, owner: static}, 10.7.0.99/24: {interface: eth1, owner: static}"
    )
    assert not findings(host(), HostCheck.ARP_IGNORE)
    found = findings(host(), HostCheck.ARP_IGNORE, two)
    assert {it.subject for it in found} == {"net.ipv4.conf.eth0.arp_ignore", "net.ipv4.conf.eth1.arp_ignore"}
    assert {it.severity for it in found} == {ERROR}
    assert the(host(sysctls={"net.ipv4.conf.all.arp_ignore": 1}), HostCheck.ARP_IGNORE, two).severity is OK
    found = findings(host(sysctls={"net.ipv4.conf.eth0.arp_accept": 1}), HostCheck.ARP_ACCEPT)
    assert [it.severity for it in found] == [WARNING]


def test_f20_a_program_of_others_is_named() -> None:
    found = the(with_nic(program=XdpProgram(17, "firewall")), HostCheck.FOREIGN_XDP)
    assert (found.severity, found.subject) == (ERROR, "eth0")
    assert "'firewall' (id 17)" in found.message
    assert found.fix == "ip link set dev eth0 xdp off"
    assert the(with_nic(program=XdpProgram(17, "fairlead", ours=True)), HostCheck.FOREIGN_XDP).severity is OK


@pytest.mark.parametrize(
    ("mode", "generic", "severity"),
    [
        ("auto", False, OK), ("auto", True, WARNING),
        ("native", False, OK), ("native", True, ERROR),
        ("generic", False, OK), ("generic", True, OK),
    ],
)  # fmt: skip
def test_generic_mode_is_a_warning_unless_it_is_wished_or_forbidden(
    mode: str, generic: bool, severity: Severity
) -> None:
    setup = configuration(more=f"xdp: {{mode: {mode}}}")
    found = the(with_nic(generic=generic), HostCheck.XDP_MODE, setup)
    assert (found.severity, found.subject) == (severity, "eth0")
    assert not findings(host(), HostCheck.XDP_MODE, setup), "what cannot be seen is not judged"


def veth(peer: VethPeer | None, receives: bool | None, setup: Configuration | None = None) -> Finding:
    facts = with_nic(kind="veth", peer=peer, receives=receives)
    return the(replace(facts, carriers=("eth0",)), HostCheck.VETH_PEER, setup)


def test_f24_a_veth_without_a_program_at_its_other_end() -> None:
    bare, full = VethPeer("p0", program=False), VethPeer("p0", program=True)
    found = veth(bare, receives=False)
    assert (found.severity, found.subject) == (ERROR, "eth0")
    assert "its peer p0" in found.message
    assert "every frame" in found.message
    assert found.fix == "ip link set dev p0 xdp object /lib/pass.bpf.o section xdp"
    assert veth(full, receives=True).severity is OK
    assert veth(full, receives=None).severity is OK, "an old kernel"


def test_f24_gro_at_the_other_end_is_not_enough_for_what_turns_around() -> None:
    bare, near = VethPeer("p0", program=False), configuration("dsr", server="192.0.2.21:80")
    assert veth(bare, receives=True).severity is WARNING
    assert veth(bare, receives=True, setup=near).severity is ERROR
    assert veth(bare, receives=None).severity is WARNING


@pytest.mark.parametrize("peer", [None, VethPeer()])
def test_f24_an_end_that_cannot_be_seen_is_not_called_well(peer: VethPeer | None) -> None:
    assert veth(peer, receives=False).severity is ERROR
    for receives in (True, None):
        found = veth(peer, receives=receives, setup=configuration("dsr", server="192.0.2.21:80"))
        assert found.severity is WARNING
        assert "cannot be seen" in found.message


def test_servers_of_dsr_are_on_the_link() -> None:
    near = configuration("dsr", server="192.0.2.21:80")
    found = the(host(), HostCheck.SERVER_ROUTE, near)
    assert (found.severity, found.subject, found.message) == (OK, "web", "servers on the link of eth0: 1")
    found = the(host(ways={NEAR: Way("eth0", gateway=True)}), HostCheck.SERVER_ROUTE, near)
    assert (found.severity, found.subject) == (ERROR, "web/192.0.2.21")
    assert "behind a gateway" in found.message
    assert the(host(ways={FAR: Way("eth0", gateway=True)}), HostCheck.SERVER_ROUTE).severity is OK, "nat routes"


def test_servers_can_be_reached_and_are_not_here() -> None:
    found = the(host(ways={FAR: Way()}), HostCheck.SERVER_ROUTE)
    assert (found.severity, found.fix) == (ERROR, "ip route add 10.7.0.10 via GATEWAY")
    found = the(host(ways={FAR: Way("lo", local=True)}), HostCheck.SERVER_ROUTE)
    assert found.severity is ERROR
    assert "proxy" in found.message


@pytest.mark.parametrize(
    ("server", "mtu", "severity", "fix"),
    [
        ("10.7.0.10:80", 1519, WARNING, "ip link set dev eth1 mtu 1520"),
        ("10.7.0.10:80", 1520, OK, ""),
        ("[fd00:7::10]:80", 1539, WARNING, "ip link set dev eth1 mtu 1540"),
        ("[fd00:7::10]:80", 1540, OK, ""),
    ],
)
def test_tunnels_have_room_for_their_outer_header(server: str, mtu: int, severity: Severity, fix: str) -> None:
    found = the(with_nic("eth1", mtu=mtu), HostCheck.TUNNEL_MTU, configuration("tunnel", server=server))
    assert (found.severity, found.subject, found.fix) == (severity, "eth1", fix)
    assert not findings(with_nic("eth1", mtu=mtu), HostCheck.TUNNEL_MTU)


def owned(macs: tuple[str, ...] | None, owner: str, *, held: bool) -> Finding:
    more = "vrrp: {pair: {interface: eth0, vrid: 1}}" if owner == "pair" else ""
    setup = configuration(vips=f"192.0.2.10/24: {{interface: eth0, owner: {owner}}}", more=more)
    facts = host(owners={VIP: macs}) if held else replace(with_nic(addresses=()), owners={VIP: macs})
    return the(facts, HostCheck.VIP_OWNERS, setup)


def test_f13_a_vip_has_one_owner() -> None:
    one, two = ("02:00:00:00:00:01",), ("02:00:00:00:00:01", "02:00:00:00:00:02")
    for owner, held, macs, severity in (
        ("static", True, (), OK), ("static", True, one, ERROR), ("static", False, one, ERROR),
        ("static", False, (), OK),
        ("pair", True, (), OK), ("pair", True, one, ERROR), ("pair", False, one, OK), ("pair", False, two, ERROR),
        ("pair", False, (), OK), ("static", True, None, WARNING),
    ):  # fmt: skip
        found = owned(macs, owner, held=held)
        assert (found.severity, found.subject) == (severity, "192.0.2.10"), (owner, held, macs)
        assert all(mac in found.message for mac in macs or ())
    assert "though this node holds it" in owned(one, "pair", held=True).message
    assert "though this node holds it" not in owned(two, "pair", held=False).message


def test_what_is_looked_up_and_asked_for() -> None:
    assert set(doctor.destinations(configuration())) == {FAR, ip_address("192.0.2.9")}
    assert set(doctor.destinations(configuration("proxy"))) == {ip_address("192.0.2.9")}
    assert [str(it) for it in doctor.disputable(configuration(), host())] == ["192.0.2.10/24"]
    bare = configuration(vips="192.0.2.99/24: {interface: eth0, owner: static}")
    assert {str(it.address) for it in doctor.disputable(bare, host())} == {"192.0.2.99", "192.0.2.10"}
