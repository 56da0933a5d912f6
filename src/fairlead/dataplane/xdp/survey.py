# SPDX-License-Identifier: Apache-2.0
"""Gathers what ``fairlead doctor`` judges: interfaces and drivers, routes, switches, programs, capabilities.

Invariant: nothing here changes the host, and nothing is judged here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fairlead.dataplane.xdp import pins
from fairlead.dataplane.xdp.devices import Devices
from fairlead.dataplane.xdp.host import Host, Routes, read_switches, read_sysctls
from fairlead.dataplane.xdp.libbpf import binding
from fairlead.dataplane.xdp.libbpf.programs import program_by_id
from fairlead.dataplane.xdp.links import pinned_program
from fairlead.dataplane.xdp.programs import Programs
from fairlead.errors import FairleadError
from fairlead.model.configuration import Configuration
from fairlead.model.host import HostFacts, Nic, VethPeer, Way, XdpProgram
from fairlead.model.net import IPAddress
from fairlead.model.service import Forwarding
from fairlead.protocols.netdev import XdpFeature
from fairlead.protocols.rtnetlink import Link, Route

# linux/capability.h
_CAPABILITIES = {10: "CAP_NET_BIND_SERVICE", 12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW", 38: "CAP_PERFMON", 39: "CAP_BPF"}
_FIRST_FREE_PORT = "net.ipv4.ip_unprivileged_port_start"


def survey(configuration: Configuration, destinations: Iterable[IPAddress], programs: Programs, own: Path) -> HostFacts:
    """Look at this host, in this network namespace.

    Args:
        configuration: Of the balancer.
        destinations: Addresses whose routes matter.
        programs: Object files of the data plane.
        own: Object file with a program that lets every frame pass.
    """
    with Routes() as routes, Devices() as devices:
        links = routes.links()
        addresses: dict[int, list[tuple[IPAddress, int]]] = {}
        for it in routes.addresses():
            addresses.setdefault(it.index, []).append((it.address, it.prefix))
        nics = {link.name: _nic(link, addresses.get(link.index, ()), routes, devices) for link in links}
        by_index = {link.index: link.name for link in links}
        ways = {address: _way(routes.get(address), by_index) for address in destinations}
        default = {version: _way(routes.default(version), by_index) for version in (4, 6)}
    return HostFacts(
        nics=nics,
        sysctls=read_switches(("all", *nics)) | read_sysctls([_FIRST_FREE_PORT]),
        ways=ways,
        default=default,
        carriers=_carriers(configuration),
        missing=tuple(it for it in configuration.xdp.interfaces or () if it not in nics),
        capabilities=_capabilities(),
        release=_release(os.uname().release),
        libbpf=binding.trouble(),
        program=programs.forward.exists(),
        bpffs=pins.is_bpffs(pins.BPFFS),
        pass_program=str(own),
    )


def _nic(link: Link, addresses: Iterable[tuple[IPAddress, int]], routes: Routes, devices: Devices) -> Nic:
    features = devices.features(link.index)
    generic = link.generic if link.program else None if features is None else not features & XdpFeature.BASIC
    return Nic(
        name=link.name,
        kind=link.kind,
        mtu=link.mtu,
        loopback=link.loopback,
        arp=link.arp,
        addresses=tuple(addresses),
        program=_program(link) if link.program else None,
        generic=generic,
        receives=None if features is None else bool(features & XdpFeature.NDO_XMIT),
        lro=devices.lro(link.name),
        gro=devices.gro(link.name),
        peer=_peer(link, routes) if link.kind == "veth" else None,
    )


def _peer(link: Link, routes: Routes) -> VethPeer:
    here = link.peer_namespace is None
    found = routes.link(link.peer, link.peer_namespace) if link.peer else None
    return VethPeer(here=here) if found is None else VethPeer(found.name, here, bool(found.program))


def _program(link: Link) -> XdpProgram:
    name, ours = "", False
    with contextlib.suppress(FairleadError):
        program = program_by_id(link.program)
        name = program.name
        program.close()
    with contextlib.suppress(FairleadError, OSError):
        ours = pinned_program(link.index) == link.program
    return XdpProgram(link.program, name, ours)


def _way(route: Route | None, by_index: Mapping[int, str]) -> Way:
    if route is None or not route.usable:
        return Way()
    return Way(by_index.get(route.index, ""), route.gateway is not None, route.local)


def _carriers(configuration: Configuration) -> tuple[str, ...]:
    """As the data plane chooses them."""
    services = [it for it in configuration.services.values() if it.forwarding is not Forwarding.PROXY]
    if not services:
        return ()
    host = Host(configuration.xdp, lambda _kind, _subject, _message: None)
    host.vips = frozenset(configuration.vips)
    pools = {it.pool for it in services} & configuration.pools.keys()
    servers = [server.endpoint.address for pool in pools for server in configuration.pools[pool].servers]
    return tuple(host.interfaces({listen.address for it in services for listen in it.listen}, servers))


def _capabilities() -> frozenset[str]:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    held = int(found[1], 16) if found else 0
    return frozenset(name for bit, name in _CAPABILITIES.items() if held >> bit & 1)


def _release(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
