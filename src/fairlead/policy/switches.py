# SPDX-License-Identifier: Apache-2.0
"""What the kernel's switches (Documentation/networking/ip-sysctl) do to packets of a load balancer.

One decision for ``fairlead doctor`` and for the running daemon. A switch of IPv4 counts as the larger of its values
for ``all`` and for the interface, so every fix sets the interface alone unless ``all`` would still win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fairlead.model.host import Finding
from fairlead.model.reasons import HostCheck, Severity

_STRICT, _LOOSE = 1, 2
_KEEPS_QUIET = frozenset({1, 2, 8})  # values of arp_ignore that leave out what another interface carries
_QUIET, _BEST_LOCAL = 1, 2


def switch(version: int, interface: str, name: str) -> str:
    """The sysctl of an interface; a dot in its name is a slash there."""
    return f"net.ipv{version}.conf.{interface.replace('.', '/')}.{name}"


def names(interface: str) -> tuple[str, ...]:
    """Every switch of an interface that is looked at here; also for ``all``."""
    ipv4 = ("forwarding", "rp_filter", "arp_ignore", "arp_announce", "arp_accept")
    return (*(switch(4, interface, name) for name in ipv4), switch(6, interface, "forwarding"))


def set_to(name: str, value: int) -> str:
    """The command that sets a switch."""
    return f"sysctl -w {name}={value}"


def forwarding(sysctls: Mapping[str, int], interface: str, version: int) -> Finding:
    """Whether packets that come in there may leave again."""
    name = switch(version, interface, "forwarding")
    if sysctls.get(name) != 0:
        return Finding(HostCheck.FORWARDING, Severity.OK, name, "packets are forwarded")
    general = switch(version, "all", "forwarding")
    fix = set_to(name, 1)
    if sysctls.get(general) != 1:
        fix = set_to("net.ipv4.ip_forward" if version == 4 else general, 1)
    return Finding(
        HostCheck.FORWARDING, Severity.ERROR, name, f"is 0, so packets that come in by {interface} are dropped", fix
    )


def rp_filter(sysctls: Mapping[str, int], interface: str, ways_back: Iterable[str]) -> Finding:
    """Whether packets are dropped that come in there from clients.

    Args:
        sysctls: Values by name.
        interface: Where they come in.
        ways_back: Interfaces by which routes to clients leave.
    """
    name = switch(4, interface, "rp_filter")
    away = sorted(set(ways_back) - {interface, ""})
    if _effective(sysctls, interface, "rp_filter") != _STRICT:
        return Finding(HostCheck.RP_FILTER, Severity.OK, name, "not strict")
    if not away:
        return Finding(HostCheck.RP_FILTER, Severity.OK, name, "strict, and routes to clients leave there")
    return Finding(
        HostCheck.RP_FILTER,
        Severity.ERROR,
        name,
        f"is strict, but routes to clients leave by {', '.join(away)}: the kernel drops what they send by {interface}",
        set_to(name, _LOOSE),
    )


def arp_ignore(sysctls: Mapping[str, int], interface: str) -> Finding:
    """Whether the kernel answers there for addresses that another interface carries."""
    name = switch(4, interface, "arp_ignore")
    if _effective(sysctls, interface, "arp_ignore") in _KEEPS_QUIET:
        return Finding(HostCheck.ARP_IGNORE, Severity.OK, name, "ARP answers for addresses of the interface alone")
    fix = set_to(name, _QUIET)
    if sysctls.get(switch(4, "all", "arp_ignore"), 0) > _QUIET:
        fix += f" {switch(4, 'all', 'arp_ignore')}={_QUIET}"
    return Finding(
        HostCheck.ARP_IGNORE,
        Severity.ERROR,
        name,
        f"lets this host answer ARP on {interface} for addresses that other interfaces carry",
        fix,
    )


def arp_announce(sysctls: Mapping[str, int], interface: str) -> Finding:
    """Whether the host's own ARP requests there name addresses that another interface carries."""
    name = switch(4, interface, "arp_announce")
    if _effective(sysctls, interface, "arp_announce") >= _BEST_LOCAL:
        return Finding(HostCheck.ARP_ANNOUNCE, Severity.OK, name, "ARP requests name an address of the interface")
    return Finding(
        HostCheck.ARP_ANNOUNCE,
        Severity.ERROR,
        name,
        f"lets this host ask on {interface} with an address that another interface carries as the sender: who hears "
        "that sends what is for the VIP here",
        set_to(name, _BEST_LOCAL),
    )


def arp_accept(sysctls: Mapping[str, int], interface: str) -> Finding:
    """Whether anybody there can fill the host's table of neighbours."""
    name = switch(4, interface, "arp_accept")
    if _effective(sysctls, interface, "arp_accept") == 0:
        return Finding(HostCheck.ARP_ACCEPT, Severity.OK, name, "announcements make no new neighbours")
    culprits = [it for it in (name, switch(4, "all", "arp_accept")) if sysctls.get(it, 0) != 0]
    return Finding(
        HostCheck.ARP_ACCEPT,
        Severity.WARNING,
        name,
        "lets gratuitous ARP of strangers fill the neighbour table, through which packets find their next hop; "
        "known neighbours are updated without it",
        "sysctl -w " + " ".join(f"{it}=0" for it in culprits),
    )


def _effective(sysctls: Mapping[str, int], interface: str, name: str) -> int:
    """IN_DEV_MAXCONF of the kernel."""
    return max(sysctls.get(switch(4, where, name), 0) for where in ("all", interface))
