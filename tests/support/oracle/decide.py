# SPDX-License-Identifier: Apache-2.0
"""Where packets go."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from fairlead.dataplane.xdp.abi import Counter
from support.oracle.hashing import MASK, sip13, splitmix
from support.oracle.nouns import Flow, Missed, Parsed, Refused, Reply, Route, Server, Service, Tuple, dropped, passed
from support.packets import FIN, RST, SYN, TCP, Address
from support.xdp import hop_to


@dataclass
class Decisions:
    """Services, servers and flows, and where a packet goes by them."""

    servers: dict[int, Server] = field(default_factory=dict)
    services: dict[int, Service] = field(default_factory=dict)
    listeners: dict[tuple[Address, int, int], int] = field(default_factory=dict)
    ranges: list[tuple[Address, int, int, int, int]] = field(
        default_factory=list
    )  # vip, protocol, first, last, service
    replies: dict[tuple[Address, int, int], Reply] = field(default_factory=dict)
    vips: set[Address] = field(default_factory=set)
    snat: tuple[Address, ...] = ()
    snat_ports: tuple[int, int] = (1024, 32767)
    flows: dict[Tuple, Flow] = field(default_factory=dict)
    fragments: dict[tuple[Address, Address, int, int], tuple[Route, Server]] = field(default_factory=dict)
    rotor: int = 0
    unfinished: bool = False  # packets may come whose checksum was left to the hardware
    generic: set[str] = field(default_factory=set)  # ports that carry the program in generic mode
    noted: list[Counter] = field(default_factory=list)

    def decide(self, p: Parsed, *, about: bool = False) -> Route:
        """Where a packet goes; ``about``: it is quoted in an ICMP error and must not change any state."""
        near = p.destination in self.vips or p.destination in self.snat
        if near:
            try:
                return self._known(p, about=about)
            except Missed:
                pass
            service = self._service_at(p)
            if service:
                return self._new(p, service, about=about)
        if any(p.source == address for address, _, _ in self.replies):
            try:
                return self._reply(p, about=about)
            except Missed:
                pass
        if near:
            raise passed(Counter.PASS_NO_SERVICE)
        if not about and (reply := self._reply_of(p.destination, p.dport, p.protocol)):
            self._note_direct(p, reply)
            raise passed(Counter.PASS_DIRECT)
        raise passed(Counter.PASS_UNRELATED)

    def _service_at(self, p: Parsed) -> int:
        exact = self.listeners.get((p.destination, p.dport, p.protocol))
        if exact:
            return exact
        wide = [
            (last - first, service)
            for vip, protocol, first, last, service in self.ranges
            if vip == p.destination and protocol == p.protocol and first <= p.dport <= last
        ]
        return min(wide)[1] if wide else 0

    def _reply_of(self, address: Address, port: int, protocol: int) -> Reply | None:
        return self.replies.get((address, port, protocol)) or self.replies.get((address, 0, protocol))

    def _to_server(self, p: Parsed, number: int, service: int, flow: Flow | None) -> Route:
        server, forwarding = self.servers[number], self.services[service].forwarding
        route = Route(
            "server", service, number, forwarding, (p.source, p.sport), (p.destination, p.dport), server.address
        )
        if forwarding == "tunnel":
            return route
        if server.address.version != p.family:
            raise dropped(Counter.DROP_FAMILY)
        if forwarding != "dsr":
            route.destination = (server.address, server.port or p.dport)
            if forwarding == "fullnat" and flow is not None:
                assert flow.near is not None
                route.source = flow.near
        return route

    def _known(self, p: Parsed, *, about: bool) -> Route:
        flow = self.flows.get(p.key())
        if flow is None:
            raise Missed
        if flow.kind == "direct":
            raise passed(Counter.PASS_DIRECT)
        server = self.servers[flow.server]
        if server.generation != flow.generation:
            raise Missed
        if flow.kind == "client":
            return self._known_to_client(p, flow, server)
        service = self.services[flow.service]
        if p.is_syn() and (not flow.new or flow.table != service.table or server.reset):
            raise Missed
        if server.reset:
            if p.protocol == TCP:
                raise Refused
            raise Missed
        route = self._to_server(p, flow.server, flow.service, flow)
        if not about and (p.flags & (RST | FIN) or not p.flags & SYN):
            flow.new = False
        return route

    def _known_to_client(self, p: Parsed, flow: Flow, server: Server) -> Route:
        assert flow.near is not None
        forwarding = self.services[flow.service].forwarding
        source = flow.near if flow.near[1] else (flow.near[0], p.sport)
        route = Route("client", flow.service, flow.server, forwarding, source, (p.destination, p.dport), p.destination)
        if forwarding == "fullnat":
            assert flow.far is not None
            route.destination, route.hop = flow.far, flow.far[0]
        if server.reset:
            raise dropped(Counter.DROP_SERVER_RESET)
        return route

    def _choose(self, p: Parsed, service: Service, *, stored: bool) -> tuple[int, bool]:
        """Server (0: none) and whether servers were passed over because they are the client."""
        size = len(service.slots)
        hairpin = False
        if not size:
            return 0, False
        turn = stored and service.choice == "turn"
        if turn:
            start = service.turn
            service.turn += 1
        elif service.choice == "source":
            start = sip13(service.seed, p.source.packed + (bytes(4) if p.family == 4 else b""))
        else:
            ports = struct.pack(">HHBBBB", p.sport, p.dport, p.protocol, 0, 0, 0)
            start = sip13(service.seed, p.source.packed + p.destination.packed + ports)
        for i in range(17):
            if turn:
                slot = (start + i) % size
            else:
                h = start if i == 0 else splitmix((start + i * 0x9E3779B97F4A7C15) & MASK)
                slot = (h >> 32) * size >> 32
            number = service.members[service.slots[slot]]
            server = self.servers.get(number)
            if server is None or server.reset:
                continue
            if service.forwarding == "nat" and server.address == p.source:
                hairpin = True
                continue
            return number, hairpin
        return 0, hairpin

    def _new(self, p: Parsed, number: int, *, about: bool) -> Route:
        service = self.services[number]
        if service.mode == "reject":
            raise Refused
        if service.mode == "drop":
            raise dropped(Counter.DROP_SERVICE)
        if service.allowed is not None and not any(p.source in net for net in service.allowed):
            raise dropped(Counter.DROP_DENIED)
        stored = not about and not (p.protocol == TCP and p.flags & RST)
        chosen, hairpin = self._choose(p, service, stored=stored)
        if not chosen:
            raise dropped(Counter.DROP_HAIRPIN if hairpin else Counter.DROP_NO_SERVER)
        route = self._to_server(p, chosen, number, None)
        if about:
            if service.forwarding == "fullnat":
                raise passed(Counter.PASS_ICMP)
            return route
        server = self.servers[chosen]
        if service.forwarding == "fullnat":
            if not stored:
                raise dropped(Counter.DROP_NOT_STORED)
            self._claim(p, route, number, service)
        if not stored:
            self.noted.append(Counter.NEW_STATELESS)
            return route
        flow = Flow("server", number, chosen, server.generation, service.table, not p.flags & FIN)
        if service.forwarding == "fullnat":
            flow.near = route.source
        if service.forwarding == "nat" and server.ambiguous:
            back = (route.destination[0], p.source, route.destination[1], p.sport, p.protocol)
            self.flows[back] = Flow(
                "client",
                number,
                chosen,
                server.generation,
                service.table,
                False,
                (p.destination, p.dport),
                (p.source, p.sport),
            )
        self.flows[p.key()] = flow
        self.noted.append(Counter.NEW_FLOW)
        return route

    def _claim(self, p: Parsed, route: Route, number: int, service: Service) -> None:
        usable = [address for address in self.snat if address.version == p.family]
        first, last = self.snat_ports
        span = last - first + 1
        for _ in range(64 if usable else 0):
            turn = self.rotor
            self.rotor += 1
            near = (usable[turn // span % len(usable)], first + turn % span)
            back = (route.destination[0], near[0], route.destination[1], near[1], p.protocol)
            if back in self.flows:
                continue
            generation = self.servers[route.server].generation
            self.flows[back] = Flow(
                "client",
                number,
                route.server,
                generation,
                service.table,
                False,
                (p.destination, p.dport),
                (p.source, p.sport),
            )
            route.source = near
            return
        raise dropped(Counter.DROP_SNAT_FULL)

    def _reply(self, p: Parsed, *, about: bool) -> Route:
        reply = None if p.is_syn() else self._reply_of(p.source, p.sport, p.protocol)
        if reply is None:
            raise Missed
        if reply.ambiguous or reply.direct:
            try:
                return self._known(p, about=about)
            except Missed:
                pass
        vip = (reply.vip, reply.port or p.sport)
        route = Route("client", reply.service, reply.server, "nat", vip, (p.destination, p.dport), p.destination)
        if reply.ambiguous and not reply.guess:
            raise passed(Counter.PASS_OWN) if hop_to(p.destination) == "local" else dropped(Counter.DROP_REPLY_UNKNOWN)
        if self.servers[reply.server].reset:
            raise passed(Counter.PASS_OWN) if hop_to(p.destination) == "local" else dropped(Counter.DROP_SERVER_RESET)
        return route

    def _note_direct(self, p: Parsed, reply: Reply) -> None:
        if p.is_rst():
            return
        reply.direct = True
        back = (p.destination, p.source, p.dport, p.sport, p.protocol)
        if back not in self.flows:
            self.flows[back] = Flow("direct", reply.service, reply.server, 0, 0, False)
