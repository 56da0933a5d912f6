# SPDX-License-Identifier: Apache-2.0
"""What only shows when things are seen together: unknown names, overlaps, sums that can never be reached."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from fairlead.config.findings import Findings, Place, shown
from fairlead.config.forms import NAME
from fairlead.config.schema.document import Draft
from fairlead.config.schema.health import Dns, Exec, Grpc, Monitor, Tcp, Through, Tls, Udp
from fairlead.config.schema.node import Vrrp
from fairlead.config.schema.pool import Pool
from fairlead.config.schema.service import PROXY_ONLY, UDP_NOT, Service
from fairlead.config.through import faults
from fairlead.config.tree import Loc, Tree
from fairlead.model.net import Endpoint, IPAddress, Listen, Protocol
from fairlead.model.service import Engine, Forwarding, ProxyHeader, Scheduler
from fairlead.model.vip import STATIC

MAX_SERVICES = 16383  # ids of a worker
MAX_SERVERS = 131071
MAX_TRANSPARENT = 1000  # each is a routing rule, which every packet that arrives is compared with
MAX_PROXY_PORTS = 4096  # a proxy opens one socket per port and worker


def check(draft: Draft, tree: Tree, found: Findings) -> None:
    """Record errors and warnings about things that refer to each other."""
    _Checks(draft, tree, found).run()


class _Checks:
    def __init__(self, draft: Draft, tree: Tree, found: Findings) -> None:
        self._draft = draft
        self._tree = tree
        self._found = found

    def run(self) -> None:
        for name, entry in self._tree.named["services"].items():
            self._named_pool(name, entry.value)
        for name, service in self._draft.services.items():
            self._service(name, service)
        for name, pool in self._draft.pools.items():
            self._pool(name, pool)
        self._overlaps()
        self._shared_replies()
        self._usage()
        self._ownership()

    def _error(self, loc: Loc, message: str, *, key: bool = False) -> None:
        self._found.error(*self._tree.locate(loc, key=key), message)

    def _warn(self, loc: Loc, message: str, *, key: bool = False) -> None:
        self._found.warn(*self._tree.locate(loc, key=key), message)

    def _named_pool(self, name: str, service: object) -> None:
        """Does the pool exist? Looked up in what was written, so that another mistake in the service hides nothing."""
        pools = self._tree.named["pools"]
        wanted = service.get("pool") if isinstance(service, dict) else None
        if isinstance(wanted, str) and NAME.fullmatch(wanted) and wanted not in pools:
            hint = self._found.suggestion(wanted, pools) or "; define it under `pools:`"
            self._error(("services", name, "pool"), f"there is no pool {shown(wanted)}{hint}")

    def _service(self, name: str, service: Service) -> None:
        loc = ("services", name)
        if service.pool in self._draft.pools:
            pool = self._draft.pools[service.pool]
            self._reach(loc, service, pool)
            if service.scheduler is Scheduler.LC and pool.slow_start:
                self._warn(
                    (*loc, "scheduler"),
                    f"`lc` knows no weights: `slow_start` of pool {shown(service.pool)} has no effect here; use `wlc`",
                )
        self._forwarding(loc, service)
        for key in ("allow", "deny"):
            self._host_bits((*loc, key), getattr(service, key))

    def _forwarding(self, loc: Loc, service: Service) -> None:
        """Do forwarding, engine and the other keys go together?"""
        proxy = service.forwarding is Forwarding.PROXY
        wrong = (Engine.XDP, Engine.LVS) if proxy else (Engine.USERSPACE,)
        if service.engine in wrong:
            can = "`auto` or `userspace`" if proxy else "`auto`, `xdp` or `lvs`"
            self._error(
                (*loc, "engine"), f"`{service.engine}` cannot carry `forwarding: {service.forwarding}`; use {can}"
            )
        if proxy:
            if service.protocol is Protocol.UDP and service.proxy_protocol.send is ProxyHeader.V1:
                self._error((*loc, "proxy_protocol", "send"), "`v1` knows only TCP; use `v2`")
            self._without_effect(loc, service, UDP_NOT if service.protocol is Protocol.UDP else (), "protocol: udp")
            ports = sum(listen.last - listen.first + 1 for listen in service.listen)
            if ports > MAX_PROXY_PORTS:
                message = f"{ports} ports; `forwarding: proxy` opens a socket for each, at most {MAX_PROXY_PORTS}"
                self._error((*loc, "listen"), message)
            return
        self._without_effect(loc, service, PROXY_ONLY, f"forwarding: {service.forwarding}")
        self._needs_proxy(loc, service)

    def _needs_proxy(self, loc: Loc, service: Service) -> None:
        """What takes counting open connections, which packets of one direction do not allow."""
        how = f"`forwarding: {service.forwarding}`"
        if service.scheduler in (Scheduler.LC, Scheduler.WLC):
            self._error(
                (*loc, "scheduler"),
                f"`{service.scheduler}` needs the number of open connections, which {how} does not know exactly; "
                "use `maglev`, `wrr`, `rr`, `sh` or `random`",
            )
        if service.persistence is not None:
            self._error(
                (*loc, "persistence"), f"is not supported with {how}; `scheduler: sh` keeps a client on its server"
            )
        for key in ("connections", "connections_per_source"):
            if getattr(service.limits, key):
                self._error(
                    (*loc, "limits", key), f"is not supported with {how}, which does not count open connections"
                )
        pool = self._draft.pools.get(service.pool)
        for index, server in enumerate(pool.servers if pool is not None else ()):
            if server.max_connections:
                where = ("pools", service.pool, "servers", index, "max_connections")
                self._warn(where, f"has no effect on service {shown(loc[1])}, which has {how}")

    def _without_effect(self, loc: Loc, service: Service, keys: Iterable[str], why: str) -> None:
        for key in keys:
            if key in service.model_fields_set:
                self._warn((*loc, key), f"has no effect with `{why}`", key=True)

    def _reach(self, loc: Loc, service: Service, pool: Pool) -> None:
        """Can packets that arrive at the service reach the servers at all, and not the service itself?"""
        if service.transparent:
            self._transparent(loc, pool)
        families = {listen.address.version for listen in service.listen}
        family = next(iter(families)) if len(families) == 1 else None
        kept = service.forwarding in (Forwarding.NAT, Forwarding.FULLNAT, Forwarding.DSR) or service.transparent
        same_port = service.forwarding in (Forwarding.DSR, Forwarding.TUNNEL)
        addresses: dict[IPAddress, list[Listen]] = {}
        for listen in service.listen:
            addresses.setdefault(listen.address, []).append(listen)
        for index, server in enumerate(pool.servers):
            at = server.endpoint
            if at.address in addresses:
                self._loop(loc, index, service, addresses[at.address], at)
            if kept and at.address.version != family:
                how = "transparent: true" if service.transparent else f"forwarding: {service.forwarding}"
                message = (
                    f"server {at} is not of the address family of the service, which `{how}` cannot bridge; "
                    "use `proxy`, or a pool per family"
                )
                self._error((*loc, "pool"), message)
                return
            if same_port and at.port and any((n.first, n.last) != (at.port, at.port) for n in service.listen):
                message = f"server {at} has another port, which `forwarding: {service.forwarding}` cannot rewrite"
                self._error((*loc, "pool"), message)
                return

    def _transparent(self, loc: Loc, pool: Pool) -> None:
        """Answers to the client's address must come back through this host."""
        local = next((it.endpoint for it in pool.servers if it.endpoint.address.is_loopback), None)
        if local is not None:
            self._error((*loc, "transparent"), f"server {local} is on this host: its answers would pass fairlead by")
        if len(pool.servers) > MAX_TRANSPARENT:
            self._error((*loc, "transparent"), f"{len(pool.servers)} servers; at most {MAX_TRANSPARENT}")

    def _loop(self, loc: Loc, index: int, service: Service, listens: Iterable[Listen], at: Endpoint) -> None:
        if service.forwarding in (Forwarding.PROXY, Forwarding.NAT, Forwarding.FULLNAT) and any(
            at.port == 0 or listen.first <= at.port <= listen.last for listen in listens
        ):
            message = f"server {at} is an address of service {shown(loc[1])} itself: connections would go in circles"
            self._error(("pools", service.pool, "servers", index, "address"), message)

    def _pool(self, name: str, pool: Pool) -> None:
        loc = ("pools", name)
        self._unique(loc, pool)
        for index, monitor in enumerate(pool.health):
            self._monitor((*loc, "health", index), monitor, pool)
        if not pool.servers:
            self._warn((*loc, "servers"), "no servers: services with this pool are down", key=True)
            return
        total = sum(server.weight for server in pool.servers)
        if total == 0:
            self._warn((*loc, "servers"), "every server has weight 0: none gets new flows", key=True)
        elif pool.quorum > total:
            message = (
                f"{pool.quorum} is more than all weights together ({total}): services with this pool are always down"
            )
            self._warn((*loc, "quorum"), message)
        if all(server.backup for server in pool.servers):
            self._warn((*loc, "servers"), "every server is a backup; they serve as if none were", key=True)

    def _unique(self, loc: Loc, pool: Pool) -> None:
        if len({it.endpoint for it in pool.servers}) == len({it.name for it in pool.servers}) == len(pool.servers):
            return
        names: dict[str, int] = {}
        addresses: dict[Endpoint, int] = {}
        for index, server in enumerate(pool.servers):
            first = addresses.setdefault(server.endpoint, index)
            if first != index:
                self._twice(loc, index, first, "address", str(server.endpoint))
                continue
            first = names.setdefault(server.name, index)
            if first != index:
                self._twice(loc, index, first, "name", server.name)

    def _twice(self, loc: Loc, index: int, first: int, key: str, value: str) -> None:
        place, _ = self._tree.locate((*loc, "servers", first, key))
        where = self._found.written(place)
        self._error((*loc, "servers", index, key), f"{shown(value)} is in this pool already, at {where}")

    def _monitor(self, loc: Loc, monitor: Monitor, pool: Pool) -> None:
        if monitor.timeout > monitor.interval:
            self._warn((*loc, "timeout"), "is longer than `interval`; probes never overlap, so they come less often")
        if isinstance(monitor, Exec):
            self._exec(loc, monitor)
        tls = getattr(monitor, "tls", None)
        if isinstance(tls, Tls):
            self._tls((*loc, "tls"), tls)
        if len(self._draft.services) == len(self._tree.named["services"]):  # else the one that it needs may be wrong
            for key, message in faults(monitor, str(loc[1]), self._draft):
                self._error((*loc, key), message)
        direct = monitor.through is Through.DIRECT
        portless = direct and isinstance(monitor, (Tcp, Grpc, Udp, Dns)) and monitor.port is None
        for index, server in enumerate(pool.servers):
            where = self._tree.locate(("pools", loc[1], "servers", index))[1]
            if portless and server.endpoint.port == 0:
                self._error(loc, f"needs `port`, because {where} has none")
                return
            probed = server.endpoint.address if monitor.address is None else monitor.address
            if monitor.source is not None and monitor.source.version != probed.version:
                self._error((*loc, "source"), f"cannot reach {probed} of {where}, which is of the other address family")
                return

    def _exec(self, loc: Loc, monitor: Exec) -> None:
        if not self._draft.settings.health.allow_exec:
            self._error(
                (*loc, "type"),
                "`exec` runs a program and is off; `health: {allow_exec: true}` at the top level allows it",
            )
        if not monitor.command[0].startswith("/"):
            self._error((*loc, "command", 0), f"{shown(monitor.command[0])} is not the absolute path of a program")

    def _tls(self, loc: Loc, tls: Tls) -> None:
        if tls.certificate_key is not None and tls.certificate is None:
            self._error((*loc, "certificate_key"), "is the key of no `certificate`; name that file, too")
        if tls.ca_file is not None and not tls.verify:
            self._warn((*loc, "ca_file"), "has no effect without `verify: true`", key=True)

    def _host_bits(self, loc: Loc, networks: list[IPv4Interface | IPv6Interface]) -> None:
        for index, network in enumerate(networks):
            if network.ip != network.network.network_address:
                self._warn((*loc, index), f"{network} has bits set beyond its prefix; it is read as {network.network}")

    def _overlaps(self) -> None:
        """Two listeners that would take the same packets."""
        groups: dict[tuple[str, IPAddress], list[tuple[Listen, str, int]]] = {}
        for name, service in self._draft.services.items():
            for index, listen in enumerate(service.listen):
                groups.setdefault((service.protocol, listen.address), []).append((listen, name, index))
        for (protocol, _), members in groups.items():
            if len(members) > 1:
                self._overlap(protocol, members)

    def _overlap(self, protocol: str, members: list[tuple[Listen, str, int]]) -> None:
        # Sorted by first port, each is compared with the one that reaches furthest so far.
        members.sort(key=lambda member: member[0].first)
        widest = members[0]
        for member in members[1:]:
            if member[0].first <= widest[0].last:
                ours, theirs = (("services", name, "listen", index) for _, name, index in (member, widest))
                first, second = sorted(((self._tree.locate(ours), member), (self._tree.locate(theirs), widest)))
                where = self._found.written(first[0][0])
                what = f"{second[1][0]} ({protocol}) overlaps {first[1][0]} of service {shown(first[1][1])} at {where}"
                self._found.error(*second[0], what)
            if member[0].last > widest[0].last:
                widest = member

    def _shared_replies(self) -> None:
        """Replies of a nat server tell the VIP only while one service has it."""
        users: dict[str, dict[Endpoint, tuple[str, list[Listen]]]] = {protocol: {} for protocol in Protocol}
        told: set[tuple[str, str]] = set()
        for name, service in self._draft.services.items():
            pool = self._draft.pools.get(service.pool)
            if service.forwarding is not Forwarding.NAT or pool is None:
                continue
            known, mine = users[service.protocol], (name, service.listen)
            for server in pool.servers:
                first, listens = known.setdefault(server.endpoint, mine)
                if first == name or (server.endpoint.port == 0 and _ports_differ(listens, service.listen)):
                    continue
                if (first, name) not in told:
                    told.add((first, name))
                    self._warn(
                        ("services", name, "pool"),
                        f"server {server.endpoint} also serves {shown(first)} by nat: only the flow table tells "
                        "whose its replies are, so these flows do not survive a takeover by another node",
                    )

    def _usage(self) -> None:
        draft, tree = self._draft, self._tree
        if not tree.named["services"]:
            self._found.warn(Place(0, 1, 1), "services", "no services: nothing is served")
        used = {service.pool for service in draft.services.values()}
        for name in draft.pools:
            if name not in used:
                self._warn(("pools", name), "no service uses this pool; it is not probed", key=True)
        if len(draft.services) > MAX_SERVICES:
            self._error(
                ("services", next(iter(draft.services))), f"{len(draft.services)} services; at most {MAX_SERVICES}"
            )
        servers = sum(len(pool.servers) for pool in draft.pools.values())
        if servers > MAX_SERVERS:
            self._error(("pools", next(iter(draft.pools))), f"{servers} servers in all pools; at most {MAX_SERVERS}")

    def _ownership(self) -> None:
        """VIPs name their owner, VRRP instances the services that they follow."""
        draft, tree = self._draft, self._tree
        addresses: dict[Any, str] = {}
        for name, vip in draft.vips.items():
            if vip.owner != STATIC and vip.owner not in tree.named["vrrp"]:
                choices = [*tree.named["vrrp"], STATIC]
                hint = self._found.suggestion(vip.owner, choices) or "; write `static`, or define it under `vrrp:`"
                self._error(("vips", name, "owner"), f"there is no owner {shown(vip.owner)}{hint}")
            elif vip.owner != STATIC and vip.interface == "lo":
                self._error(("vips", name, "interface"), "`lo` has no neighbours that could learn who owns the address")
            first = addresses.setdefault(_address(name) or name, name)
            if first != name:
                self._error(("vips", name), f"is the same address as {shown(first)}", key=True)
        if STATIC in tree.named["vrrp"]:
            self._error(("vrrp", STATIC), "the name `static` means addresses without VRRP; use another", key=True)
        # A VIP that did not pass the schema may be the one that an instance lacks.
        complete = len(draft.vips) == len(tree.named["vips"]) and all(_address(key) for key in draft.vips)
        groups: dict[tuple[str, int, int], str] = {}
        sync: dict[str, list[str]] = {}
        for name, instance in draft.vrrp.items():
            self._instance(name, instance)
            if instance.sync is not None:
                sync.setdefault(instance.sync, []).append(name)
            family = self._family(name, instance)
            if family is None:
                if complete and NAME.fullmatch(name):  # a wrong name cannot be an owner
                    message = f"no VIP on {instance.interface} has the owner {shown(name)}: there is nothing to own"
                    self._error(("vrrp", name), message, key=True)
                continue
            self._family_fits(name, instance, family)
            first = groups.setdefault((instance.interface, instance.vrid, family), name)
            if first != name:
                message = f"{instance.vrid} on {instance.interface} is the vrid of {shown(first)} already"
                self._error(("vrrp", name, "vrid"), message)
        self._sync_groups(sync)

    def _instance(self, name: str, instance: Vrrp) -> None:
        services = self._tree.named["services"]
        for index, service in enumerate(instance.follow):
            if service not in services:
                hint = self._found.suggestion(service, services)
                self._error(("vrrp", name, "follow", index), f"there is no service {shown(service)}{hint}")
        loc = ("vrrp", name, "advert_interval")
        if instance.version == 2 and instance.advert_interval % 1:
            self._error(loc, "version 2 counts in whole seconds")
        elif abs(instance.advert_interval * 100 - round(instance.advert_interval * 100)) > 1e-6:
            self._error(loc, "version 3 counts in hundredths of a second; write a multiple of `10ms`")

    def _family(self, name: str, instance: Vrrp) -> int | None:
        """That of its first VIP on its interface."""
        own = (key for key, vip in self._draft.vips.items() if (vip.owner, vip.interface) == (name, instance.interface))
        return next((address.version for key in own if (address := _address(key)) is not None), None)

    def _family_fits(self, name: str, instance: Vrrp, family: int) -> None:
        if instance.version == 2 and family == 6:
            self._error(("vrrp", name, "version"), "version 2 is IPv4 only, and the first VIP is not; use 3")
        for index, peer in enumerate(instance.peers):
            if peer.version != family:
                message = f"{peer} is not of the address family of the first VIP, which advertisements use"
                self._error(("vrrp", name, "peers", index), message)

    def _sync_groups(self, groups: dict[str, list[str]]) -> None:
        for group, names in groups.items():
            first = self._draft.vrrp[names[0]]
            if len(names) == 1:
                self._warn(("vrrp", names[0], "sync"), f"no other instance is in the group {shown(group)}")
            for name in names[1:]:
                if self._draft.vrrp[name].priority != first.priority:
                    message = f"differs from that of {shown(names[0])}; instances that move together have one priority"
                    self._error(("vrrp", name, "priority"), message)


def _ports_differ(one: Iterable[Listen], other: Iterable[Listen]) -> bool:
    """Whether no port is in both."""
    return all(a.last < b.first or b.last < a.first for a in one for b in other)


def _address(name: str) -> IPAddress | None:
    """The address of a VIP's key, or None when it is none."""
    try:
        return ip_interface(name).ip
    except ValueError:
        return None
