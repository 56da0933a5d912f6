# SPDX-License-Identifier: Apache-2.0
"""Judges a machine that is a real server of ``dsr`` or ``tunnel``: it has the VIP too, and nobody may learn that.

The balancer gives such a server packets that are addressed to the VIP (dsr) or carry such packets (tunnel); the
server answers clients itself. So the VIP is on it, without ARP (F13), and packets from clients come in by interfaces
that routes to clients need not leave by (F32).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from fairlead.model.configuration import Configuration
from fairlead.model.host import LOOPBACK, Finding, HostFacts, Nic
from fairlead.model.net import IPAddress
from fairlead.model.reasons import HostCheck, Severity
from fairlead.model.service import Forwarding
from fairlead.policy import switches
from fairlead.policy.doctor import by_urgency

_OPENS = {4: ("ipip", "sit"), 6: ("ip6tnl",)}  # kinds of devices that take packets out of IPv4, or of IPv6
_OPENER = {
    4: "modprobe ipip && ip link set dev tunl0 up",
    6: "modprobe ip6_tunnel && ip link set dev ip6tnl0 up",
}


@dataclass(frozen=True, slots=True)
class Part:
    """What this machine is in one service: the server ``address``, for a VIP."""

    service: str
    forwarding: Forwarding
    address: IPAddress
    vip: IPAddress


def parts(configuration: Configuration, host: HostFacts) -> tuple[Part, ...]:
    """What this machine is in the services of the file."""
    found = []
    for service in configuration.services.values():
        pool = configuration.pools.get(service.pool)
        if service.forwarding not in (Forwarding.DSR, Forwarding.TUNNEL) or pool is None:
            continue
        for server in pool.servers:
            if host.holder(server.endpoint.address) is not None:
                addresses = dict.fromkeys(listen.address for listen in service.listen)
                found += [Part(service.name, service.forwarding, server.endpoint.address, vip) for vip in addresses]
    return tuple(found)


def examine(configuration: Configuration, host: HostFacts) -> tuple[Finding, ...]:
    """What is to say about this machine as a real server, the worst first."""
    mine = parts(configuration, host)
    if not mine:
        message = (
            "none of this machine's addresses is that of a server of a dsr or tunnel service in the file: run it on "
            "such a server, with the file of the balancer"
        )
        return (Finding(HostCheck.REAL_SERVER, Severity.ERROR, "host", message),)
    found: list[Finding] = []
    for part in mine:
        message = f"a server of {part.service} ({part.forwarding})"
        found.append(Finding(HostCheck.REAL_SERVER, Severity.OK, str(part.address), message))
        found.append(vip_place(host, part.vip))
        if part.forwarding is Forwarding.TUNNEL:
            found.append(decapsulation(host, part.address))
        if part.vip.version == 4:
            for name in facing(host, part):
                found += [switches.arp_ignore(host.sysctls, name), switches.arp_announce(host.sysctls, name)]
            back = ways_back(configuration, host, part.vip)
            found += [switches.rp_filter(host.sysctls, name, back) for name in arrivals(host, part)]
    return by_urgency(found)


def vip_place(host: HostFacts, vip: IPAddress) -> Finding:
    """Whether the VIP is where packets for it are taken and ARP for it is not answered."""
    add = f"ip address add {vip}/{vip.max_prefixlen} dev {LOOPBACK}"
    nic = host.holder(vip)
    if nic is None:
        message = "this machine does not have the VIP, so it drops what it is given for it"
        return Finding(HostCheck.VIP_PLACE, Severity.ERROR, str(vip), message, add)
    prefix = next(length for address, length in nic.addresses if address == vip)
    remove = f"ip address del {vip}/{prefix} dev {nic.name}"
    if nic.arp and not nic.loopback:
        message = f"it is on {nic.name}, where the network learns it: clients reach this machine past the balancer"
        return Finding(HostCheck.VIP_PLACE, Severity.ERROR, str(vip), message, f"{remove} && {add}")
    if nic.loopback and prefix != vip.max_prefixlen:
        message = f"it is on {nic.name} with /{prefix}: this machine takes all of that network for itself"
        return Finding(HostCheck.VIP_PLACE, Severity.ERROR, str(vip), message, f"{remove} && {add}")
    return Finding(HostCheck.VIP_PLACE, Severity.OK, str(vip), f"on {nic.name}")


def decapsulation(host: HostFacts, address: IPAddress) -> Finding:
    """Whether something here can take packets out of a tunnel to ``address``."""
    devices = [nic.name for nic in host.nics.values() if nic.kind in _OPENS[address.version]]
    programs = [nic.name for nic in host.nics.values() if nic.program is not None]
    if devices:
        return Finding(HostCheck.DECAPSULATION, Severity.OK, str(address), f"by {', '.join(devices)}")
    if programs:
        message = f"no tunnel device; the XDP program on {', '.join(programs)} may do it, which cannot be seen"
        return Finding(HostCheck.DECAPSULATION, Severity.OK, str(address), message)
    message = f"nothing here takes packets out of tunnels over IPv{address.version}"
    return Finding(HostCheck.DECAPSULATION, Severity.ERROR, str(address), message, _OPENER[address.version])


def facing(host: HostFacts, part: Part) -> tuple[str, ...]:
    """Interfaces on which somebody may ask by ARP for the VIP: on its network, and for dsr that of the server."""
    found = {nic.name: None for nic in host.nics.values() if _asked(nic) and _on_network(nic, part.vip)}
    server = host.holder(part.address)
    if part.forwarding is Forwarding.DSR and server is not None and _asked(server):
        found[server.name] = None
    return tuple(found)


def arrivals(host: HostFacts, part: Part) -> tuple[str, ...]:
    """Interfaces by which packets of clients come in.

    For dsr that of the server's address. For tunnels the devices that take packets out, and every interface where an
    XDP program may do so. Where a server's address is on the loopback interface, all that could.
    """
    server = host.holder(part.address)
    found: dict[str, None] = {}
    if part.forwarding is Forwarding.TUNNEL:
        opens = _OPENS[part.address.version]
        found |= {nic.name: None for nic in host.nics.values() if nic.kind in opens or nic.program is not None}
    elif server is not None and not server.loopback:
        found[server.name] = None
    if not found:
        found |= {nic.name: None for nic in host.nics.values() if _asked(nic) and nic.addresses}
    return tuple(found)


def ways_back(configuration: Configuration, host: HostFacts, vip: IPAddress) -> frozenset[str]:
    """Interfaces by which this machine answers clients: the default route, and the network of the VIP."""
    found = {nic.name for nic in host.nics.values() if _asked(nic) and _on_network(nic, vip)}
    for it in configuration.vips:
        if it.address == vip:
            network = ip_network((vip, it.prefix), strict=False)
            found |= {host.ways[a].interface for a in host.ways if a in network and not host.ways[a].local}
    default = host.default.get(vip.version)
    if default is not None:
        found.add(default.interface)
    return frozenset(found - {""})


def _asked(nic: Nic) -> bool:
    return nic.arp and not nic.loopback


def _on_network(nic: Nic, address: IPAddress) -> bool:
    return any(
        held.version == address.version and address in ip_network((held, length), strict=False)
        for held, length in nic.addresses
    )
