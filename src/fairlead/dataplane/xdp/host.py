# SPDX-License-Identifier: Apache-2.0
"""What the XDP data plane must know of the host: where packets go, which interfaces matter, which switches are set.

Invariant: nothing here changes the host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path
from typing import Self

from fairlead.dataplane.xdp import offloads
from fairlead.dataplane.xdp.interfaces import interfaces
from fairlead.model.net import IPAddress
from fairlead.model.reasons import Severity
from fairlead.model.vip import Vip
from fairlead.model.xdp import XdpSettings
from fairlead.policy import switches
from fairlead.protocols import rtfilters, rtnetlink
from fairlead.protocols.rtfilters import Filter
from fairlead.protocols.rtnetlink import InterfaceAddress, Interrupted, Link, Message, Neighbour, Outcome, Route

_BUFFER = 1 << 17
_QUESTIONS = 8  # between rests
_LOOPBACK = 1
_DUMPS = 8
ASK_ALL = 1024  # of more servers than these, one in each /24 or /64 is asked about
SYSCTL = Path("/proc/sys/net")
_ANYWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}  # documentation addresses: the default route answers for them


class Host:
    """The host's routing table, seen now.

    Args:
        settings: Of the configuration.
        event: Called with a kind, a subject and a message of something people should know.
    """

    def __init__(self, settings: XdpSettings, event: Callable[[str, str, str], None]) -> None:
        self.vips: frozenset[Vip] = frozenset()
        self._settings = settings
        self._event = event
        self._told: set[tuple[str, str]] = set()

    def tunnel_source(self, server: IPAddress) -> IPAddress | None:
        """The outer source address of tunnels to a server."""
        fixed = self._settings.tunnel_source
        if fixed is not None and fixed.version == server.version:
            return fixed
        with Routes() as routes:
            route = routes.get(server)
        return route.source if route is not None else None

    def gateway(self, server: IPAddress) -> IPAddress | None:
        """What a server is behind; None when it is on the link, or there is no route to it."""
        with Routes() as routes:
            route = routes.get(server)
        return route.gateway if route is not None and route.usable else None

    def snat(self, servers: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """What fullnat sends from."""
        if self._settings.snat is not None:
            return self._settings.snat
        found: dict[IPAddress, None] = {}
        with Routes() as routes:
            for server in some(servers):
                route = routes.get(server)
                if route is not None and route.source is not None:
                    found[route.source] = None
        return tuple(found)

    def interfaces(self, addresses: Iterable[IPAddress], servers: Iterable[IPAddress]) -> dict[str, int]:
        """The interfaces that are to carry the program, by name; those that do not exist are told and left out."""
        asking = self.seek(addresses, servers)
        while True:
            try:
                next(asking)
            except StopIteration as end:
                return dict(end.value)

    def seek(
        self, addresses: Iterable[IPAddress], servers: Iterable[IPAddress]
    ) -> Generator[None, None, dict[str, int]]:
        """The same with a rest after a few questions to the kernel, for there may be a thousand."""
        present = interfaces()
        if self._settings.interfaces is not None:
            for name in self._settings.interfaces:
                self._tell_once(
                    name not in present, "interface_missing", name,
                    "it is in xdp.interfaces, but there is no such interface; it gets the program when it appears",
                )  # fmt: skip
            return {name: present[name] for name in self._settings.interfaces if name in present}
        offered = frozenset(addresses)
        missing = {vip.interface for vip in self.vips if vip.address in offered} - present.keys()
        for name in sorted({vip.interface for vip in self.vips}):
            self._tell_once(
                name in missing, "interface_missing", name,
                "VIPs of services are to be there, but there is no such interface; it gets the program when it appears",
            )  # fmt: skip
        wanted = self._of_vips(offered, present)
        with Routes() as routes:
            for number, server in enumerate(some(servers), 1):
                route = routes.get(server)
                if route is not None and route.usable and not route.local:
                    wanted.add(route.index)
                if number % _QUESTIONS == 0:
                    yield
        return {name: index for name, index in present.items() if index in wanted and index != _LOOPBACK}

    def _of_vips(self, addresses: frozenset[IPAddress], present: dict[str, int]) -> set[int]:
        """Where packets to these addresses come in: a VIP's interface, one that has the address, the way far away."""
        named = {vip.address: present[vip.interface] for vip in self.vips if vip.interface in present}
        with Routes() as routes:
            carried = {it.address: it.index for it in routes.addresses() if it.index != _LOOPBACK}
            placed = addresses & frozenset(named)
            here = (addresses & frozenset(carried)) - placed
            versions = {it.version for it in addresses - placed - here}
            far = [route for version in versions if (route := routes.default(version)) is not None and route.usable]
        return {named[it] for it in placed} | {carried[it] for it in here} | {route.index for route in far}

    def of_ways(self, vips: Iterable[IPAddress], servers: Sequence[IPAddress]) -> dict[str, int]:
        """The interfaces that probes by the way of services leave or come back by, by name."""
        found = self.interfaces(vips, servers)
        if self._settings.interfaces is not None:  # these need not be those of the routes
            present = dict(socket.if_nameindex())
            with Routes() as routes:
                for server in some(servers):
                    route = routes.get(server)
                    if route is not None and route.usable and not route.local and route.index in present:
                        found[present[route.index]] = route.index
        return found

    def own_address(self, vip: IPAddress) -> IPAddress | None:
        """An address of this host, and of the VIP's family, that is none of the VIPs; best of all beside this one."""
        names = dict(socket.if_nameindex())
        placed = {it.interface for it in self.vips if it.address == vip}
        foreign = {it.address for it in self.vips}
        with Routes() as routes:
            usable = [
                it
                for it in routes.addresses()
                if it.address.version == vip.version
                and it.address not in foreign
                and it.address != vip
                and not (it.address.is_loopback or it.address.is_link_local)
            ]
        beside = [it for it in usable if names.get(it.index) in placed]
        return next((it.address for it in (*beside, *usable)), None)

    def check_switches(self, names: Iterable[str], addresses: Iterable[IPAddress], families: Iterable[int]) -> None:
        """Tell about interfaces that the kernel does not let packets through.

        Args:
            names: Interfaces that carry the program.
            addresses: Where services are offered: packets of clients come in by the interfaces of these.
            families: IP versions of the services.
        """
        carrying = list(names)
        sysctls = read_switches(("all", *carrying))
        versions = set(families)
        found = [switches.forwarding(sysctls, name, version) for version in sorted(versions) for name in carrying]
        if 4 in versions:
            present = interfaces()
            by = {index: name for name, index in present.items()}
            with Routes() as routes:
                default = routes.default(4)
            back = [by.get(default.index, "")] if default is not None and default.usable else []
            asked = {by[index] for index in self._of_vips(frozenset(addresses), present) if index in by}
            found += [switches.rp_filter(sysctls, name, back) for name in carrying if name in asked]
        for it in found:
            self._tell_once(it.severity is not Severity.OK, it.name, it.subject, f"{it.message}: {it.fix}")

    def unforwarded(self, names: Iterable[str], families: Iterable[int]) -> str | None:
        """The first switch that keeps the kernel from forwarding what comes in by these interfaces, and its cure."""
        asked = [(family, name) for family in families for name in names]
        sysctls = read_sysctls(switches.switch(family, name, "forwarding") for family, name in asked)
        found = (switches.forwarding(sysctls, name, family) for family, name in asked)
        return next((f"{it.subject} {it.message}: {it.fix}" for it in found if it.severity is not Severity.OK), None)

    def leaves_checksums(self) -> bool:
        """Whether packets may come by every interface whose senders left the checksum to the hardware.

        Where it is so for some, those that carry the program decide.
        """
        names = self._settings.interfaces or [name for name, index in interfaces().items() if index != _LOOPBACK]
        return all(offloads.leaves_checksums(name, self._settings.mode) for name in names)

    def _tell_once(self, holds: bool, kind: str, subject: str, message: str) -> None:
        if not holds:
            self._told.discard((kind, subject))
        elif (kind, subject) not in self._told:
            self._told.add((kind, subject))
            self._event(kind, subject, message)


def read_switches(interfaces: Iterable[str]) -> dict[str, int]:
    """The switches of interfaces, by name; those that are not there are left out."""
    return read_sysctls(name for interface in interfaces for name in switches.names(interface))


def read_sysctls(names: Iterable[str]) -> dict[str, int]:
    """Values by name; what is not there, or is no number, is left out."""
    found = {}
    for name in names:
        parts = (part.replace("/", ".") for part in name.split(".")[1:])
        with contextlib.suppress(OSError, ValueError):
            found[name] = int(SYSCTL.joinpath(*parts).read_text())
    return found


class Routes:
    """A conversation with the kernel about links, routes, addresses and neighbours."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(5.0)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, destination: IPAddress) -> Route | None:
        """The route to an address, or None when there is none."""
        found = None
        for message in self._ask(rtnetlink.get_route(self._next(), destination)):
            if isinstance(message, Route):
                found = message
        return found

    def default(self, family: int) -> Route | None:
        """The route to somewhere far away."""
        (address,) = ip_network(_ANYWHERE[family])
        return self.get(address)

    def links(self) -> list[Link]:
        """All interfaces of the host."""
        return [it for it in self._dump(rtnetlink.dump_links) if isinstance(it, Link)]

    def link(self, index: int, namespace: int | None) -> Link | None:
        """One interface, also of another network namespace; None where that is hidden from this process."""
        with contextlib.suppress(OSError):
            for message in self._ask(rtnetlink.get_link(self._next(), index, namespace)):
                if isinstance(message, Link):
                    return message
        return None

    def addresses(self) -> list[InterfaceAddress]:
        """All addresses of the host."""
        return [it for it in self._dump(rtnetlink.dump_addresses) if isinstance(it, InterfaceAddress)]

    def neighbours(self) -> list[Neighbour]:
        """All neighbours that the host knows."""
        return [it for it in self._dump(rtnetlink.dump_neighbours) if isinstance(it, Neighbour)]

    def filters(self, index: int, *, egress: bool) -> list[Filter]:
        """All filters of tc in one direction of an interface."""
        request = rtfilters.dump_filters(self._next(), index, egress=egress)
        return [it for it in self._ask(request, rtfilters.parse) if isinstance(it, Filter)]

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _dump(self, request: Callable[[int], bytes]) -> list[Message | Filter]:
        """All that there is; a dump that changes interrupted is made again, for a while (F45)."""
        for _ in range(_DUMPS):
            found = list(self._ask(request(self._next())))
            if not any(isinstance(it, Interrupted) for it in found):
                break
        return found

    def _ask(
        self, request: bytes, parse: Callable[[bytes], Iterator[Message | Filter]] = rtnetlink.parse
    ) -> Iterator[Message | Filter]:
        """What the kernel says to a request; an error of a lookup means that there is nothing."""
        self._socket.send(request)
        while True:
            data, sender = self._socket.recvfrom(_BUFFER)
            if sender[0] != 0:  # only the kernel is believed
                continue
            for message in parse(data):
                if not isinstance(message, Outcome):
                    yield message
                elif message.sequence == self._sequence:
                    if message.error in (errno.EPERM, errno.EINVAL):
                        raise OSError(message.error, os.strerror(message.error))
                    return


def some(addresses: Iterable[IPAddress]) -> list[IPAddress]:
    """All of them, or of too many one for each network of neighbours."""
    every = set(addresses)
    if len(every) <= ASK_ALL:
        return list(every)
    return list({int(address) >> (8 if address.version == 4 else 64): address for address in every}.values())


def own_address(address: IPAddress) -> bool:
    """Whether the host has this address."""
    with closing(socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
