# SPDX-License-Identifier: Apache-2.0
"""Judges a host that runs the load balancer, or is to: facts in, findings out, each with the command that cures it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fairlead.model.configuration import Configuration
from fairlead.model.host import Finding, HostFacts, Way
from fairlead.model.net import IPAddress
from fairlead.model.reasons import HostCheck, Severity
from fairlead.model.service import Forwarding, VirtualService
from fairlead.model.vip import STATIC, Vip
from fairlead.policy import nics, switches
from fairlead.policy.eligibility import contested

_OLDEST = (5, 18)
_XDP_NEEDS = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")
_OUTER = {4: 20, 6: 40}  # bytes of the outer header of a tunnel
_URGENCY = tuple(Severity)


def examine(configuration: Configuration, host: HostFacts) -> tuple[Finding, ...]:
    """What is to say about the host of a balancer, the worst first."""
    services = [it for it in configuration.services.values() if it.forwarding is not Forwarding.PROXY]
    found = [*_capabilities(configuration, host, packets=bool(services))]
    if services:
        found += _prerequisites(host)
        found += nics.examine(host, configuration.xdp.mode, _one_armed(configuration, host, services))
        found += _forwarding(host, services)
        found += _routes(configuration, host, services)
    found += _switches(configuration, host)
    found += _owners(configuration, host)
    return by_urgency(found)


def by_urgency(found: list[Finding]) -> tuple[Finding, ...]:
    """Errors first; what is equally urgent stays in its order. Nothing is said twice."""
    return tuple(sorted(dict.fromkeys(found), key=lambda it: _URGENCY.index(it.severity)))


def client_side(configuration: Configuration, host: HostFacts) -> tuple[str, ...]:
    """Interfaces by which clients come in: those that carry VIPs, or are to."""
    found = {vip.interface: None for vip in configuration.vips if vip.interface in host.nics}
    for service in configuration.services.values():
        for listen in service.listen:
            nic = host.holder(listen.address)
            if nic is not None:
                found[nic.name] = None
    return tuple(name for name in found if not host.nics[name].loopback)


def _capabilities(configuration: Configuration, host: HostFacts, *, packets: bool) -> Iterator[Finding]:
    proxied = [it for it in configuration.services.values() if it.forwarding is Forwarding.PROXY]
    needed = {
        "the kernel's data plane": _XDP_NEEDS if packets else (),
        "vips": ("CAP_NET_ADMIN", "CAP_NET_RAW") if configuration.vips else (),
        "transparent": ("CAP_NET_ADMIN",) if any(it.transparent for it in proxied) else (),
        "ports of services": ("CAP_NET_BIND_SERVICE",) if _lowest_port(proxied) < _first_free_port(host) else (),
    }
    for subject, names in needed.items():
        missing = [name for name in names if name not in host.capabilities]
        if missing:
            message = f"this process lacks {', '.join(missing)}: run it as root, or give the unit"
            yield Finding(
                HostCheck.CAPABILITIES, Severity.ERROR, subject, message, f"AmbientCapabilities={' '.join(missing)}"
            )
        elif names:
            yield Finding(HostCheck.CAPABILITIES, Severity.OK, subject, f"has {', '.join(names)}")


def _lowest_port(services: list[VirtualService]) -> int:
    return min((listen.first for it in services for listen in it.listen), default=1 << 16)


def _first_free_port(host: HostFacts) -> int:
    return host.sysctls.get("net.ipv4.ip_unprivileged_port_start", 1024)


def _prerequisites(host: HostFacts) -> Iterator[Finding]:
    """What the XDP program needs of the host as a whole."""
    release = ".".join(map(str, host.release))
    if host.release < _OLDEST:
        message = f"Linux {release} is too old for forwarding in the kernel, which needs 5.18 or later; use another "
        yield Finding(HostCheck.KERNEL, Severity.ERROR, "host", f"{message}kernel, or forwarding: proxy")
    else:
        yield Finding(HostCheck.KERNEL, Severity.OK, "host", f"Linux {release}")
    if host.libbpf:
        yield Finding(HostCheck.LIBBPF, Severity.ERROR, "host", host.libbpf, "apt-get install libbpf1")
    else:
        yield Finding(HostCheck.LIBBPF, Severity.OK, "host", "found")
    if host.program:
        yield Finding(HostCheck.XDP_PROGRAM, Severity.OK, "host", "compiled")
    else:
        message = "the compiled XDP program is missing: install what compiles it, then install fairlead again"
        yield Finding(HostCheck.XDP_PROGRAM, Severity.ERROR, "host", message, "apt-get install clang libbpf-dev")
    if host.bpffs:
        yield Finding(HostCheck.BPFFS, Severity.OK, "/sys/fs/bpf", "mounted")
    else:
        message = "the BPF file system is not mounted here; the daemon tries to, where it may"
        yield Finding(HostCheck.BPFFS, Severity.WARNING, "/sys/fs/bpf", message, "mount -t bpf bpf /sys/fs/bpf")


def _forwarding(host: HostFacts, services: list[VirtualService]) -> Iterator[Finding]:
    families = sorted({listen.address.version for it in services for listen in it.listen})
    for version in families:
        for name in host.carriers:
            yield switches.forwarding(host.sysctls, name, version)


def _servers(configuration: Configuration, service: VirtualService) -> list[IPAddress]:
    pool = configuration.pools.get(service.pool)
    return [] if pool is None else [server.endpoint.address for server in pool.servers]


def _one_armed(configuration: Configuration, host: HostFacts, services: list[VirtualService]) -> frozenset[str]:
    ways = {
        host.ways[address].interface
        for it in services
        for address in _servers(configuration, it)
        if address in host.ways
    }
    return frozenset(ways.intersection(client_side(configuration, host)))


def _routes(configuration: Configuration, host: HostFacts, services: list[VirtualService]) -> Iterator[Finding]:
    """Whether each server can be reached as its service wants to; whether nat servers answer this way is not seen."""
    for service in services:
        reached: Counter[str] = Counter()
        for address in _servers(configuration, service):
            way = host.ways.get(address)
            if way is None:
                continue
            trouble = _trouble(service, address, way)
            if trouble is not None:
                yield trouble
                continue
            reached[f"by {way.interface}" if way.gateway else f"on the link of {way.interface}"] += 1
            if service.forwarding is Forwarding.TUNNEL and way.interface in host.nics:
                yield from _tunnel_mtu(configuration, host, address, way.interface)
        for where, number in reached.items():
            yield Finding(HostCheck.SERVER_ROUTE, Severity.OK, service.pool, f"servers {where}: {number}")


def _trouble(service: VirtualService, server: IPAddress, way: Way) -> Finding | None:
    """Why a server cannot be reached."""
    fix = ""
    if not way.interface:
        message, fix = "there is no route to this server", f"ip route add {server} via GATEWAY"
    elif way.local:
        message = (
            "it is this host itself, to which the kernel's data plane gives no packets: say forwarding: proxy in the "
            f"service {service.name}"
        )
    elif service.forwarding is Forwarding.DSR and way.gateway:
        message = (
            "it is behind a gateway, and dsr reaches servers on the link alone: its packets are dropped. Move the "
            f"server to the link of {way.interface}, or say forwarding: tunnel in the service {service.name}"
        )
    else:
        return None
    return Finding(HostCheck.SERVER_ROUTE, Severity.ERROR, f"{service.pool}/{server}", message, fix)


def _tunnel_mtu(configuration: Configuration, host: HostFacts, server: IPAddress, out: str) -> Iterator[Finding]:
    """What clients send in full size has to fit with the outer header."""
    have = host.nics[out].mtu
    for name in client_side(configuration, host):
        need = host.nics[name].mtu + _OUTER[server.version]
        if have >= need:
            yield Finding(HostCheck.TUNNEL_MTU, Severity.OK, out, f"{have} bytes have room for the outer header")
            continue
        message = (
            f"packets of {host.nics[name].mtu} bytes from {name} do not fit into tunnels over IPv{server.version} by "
            f"{out} ({have} bytes): clients are told to send smaller ones, and hang where that is filtered. The switch "
            f"has to allow the size, too"
        )
        yield Finding(HostCheck.TUNNEL_MTU, Severity.WARNING, out, message, f"ip link set dev {out} mtu {need}")


def _switches(configuration: Configuration, host: HostFacts) -> Iterator[Finding]:
    """Switches of the interfaces by which clients come in."""
    sides = client_side(configuration, host)
    default = host.default.get(4)
    for name in sides:
        yield switches.rp_filter(host.sysctls, name, [default.interface] if default is not None else [])
        yield switches.arp_accept(host.sysctls, name)
    if len({vip.interface for vip in configuration.vips if vip.address.version == 4} & set(sides)) > 1:
        for name in sides:
            yield switches.arp_ignore(host.sysctls, name)


def _owners(configuration: Configuration, host: HostFacts) -> Iterator[Finding]:
    """Who else answers for a VIP (F13)."""
    owner = {vip.address: vip.owner for vip in configuration.vips}
    for address, macs in host.owners.items():
        held = host.holder(address) is not None
        if macs is None:
            message = "cannot be asked for: that takes CAP_NET_RAW, and an interface that is up"
            yield Finding(HostCheck.VIP_OWNERS, Severity.WARNING, str(address), message)
            continue
        who = ", ".join(macs)
        if not contested(len(macs), held=held or owner.get(address, STATIC) == STATIC):
            message = ("held here, and nobody else answers" if held else "nobody answers") if not macs else who
            yield Finding(HostCheck.VIP_OWNERS, Severity.OK, str(address), message)
            continue
        here = " though this node holds it" if held else ""
        message = (
            f"answered by {who}{here}: clients reach one or the other by chance. A real server of dsr or tunnel must "
            "keep it to itself; there, run"
        )
        yield Finding(HostCheck.VIP_OWNERS, Severity.ERROR, str(address), message, "fairlead doctor --real-server")


def destinations(configuration: Configuration) -> tuple[IPAddress, ...]:
    """Addresses whose routes are to be looked up: servers that the kernel forwards to, and neighbours of VIPs."""
    found: dict[IPAddress, None] = {}
    for service in configuration.services.values():
        if service.forwarding is not Forwarding.PROXY:
            found |= dict.fromkeys(_servers(configuration, service))
    for vip in configuration.vips:
        if vip.prefix < vip.address.max_prefixlen - 1:
            found[vip.address + 1 if int(vip.address) % 4 < 2 else vip.address - 1] = None
    return tuple(found)


def disputable(configuration: Configuration, host: HostFacts) -> tuple[Vip, ...]:
    """VIPs whose owners are to be asked for: those of the file, and addresses of services that the host carries."""
    found = {vip.address: vip for vip in configuration.vips}
    for service in configuration.services.values():
        for listen in service.listen:
            nic = host.holder(listen.address)
            if nic is not None and not nic.loopback and nic.arp:
                found.setdefault(listen.address, Vip(listen.address, listen.address.max_prefixlen, nic.name, STATIC))
    return tuple(found.values())
