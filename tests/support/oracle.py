# SPDX-License-Identifier: Apache-2.0
"""An independent forwarder in plain Python: what the XDP program should do with a packet, and why.

It shares no code with the program or its driver; only the names of counters are the same. Time stands still:
nothing expires here. Checksums are worked out by arithmetic modulo 65535, not by folding.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from fairlead.dataplane.xdp.abi import Counter
from support.packets import ACK, FIN, ICMP, ICMP6, RST, SYN, TCP, UDP, Address, checksum, pseudo
from support.xdp import Hop, Port, hop_to

DROP, PASS, TX, REDIRECT = 1, 2, 3, 4
MASK = (1 << 64) - 1
LAST_OFFSET = 1023  # headers that start later are not read


def sip13(key: bytes, message: bytes) -> int:
    """SipHash-1-3, after the text of the paper."""

    def rotate(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & MASK

    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def sip_round() -> None:
        v[0] = (v[0] + v[1]) & MASK
        v[2] = (v[2] + v[3]) & MASK
        v[1], v[3] = rotate(v[1], 13) ^ v[0], rotate(v[3], 16) ^ v[2]
        v[0] = rotate(v[0], 32)
        v[2] = (v[2] + v[1]) & MASK
        v[0] = (v[0] + v[3]) & MASK
        v[1], v[3] = rotate(v[1], 17) ^ v[2], rotate(v[3], 21) ^ v[0]
        v[2] = rotate(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes((len(message) & 255,))
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        sip_round()
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(3):
        sip_round()
    result: int = v[0] ^ v[1] ^ v[2] ^ v[3]
    return result


def splitmix(state: int) -> int:
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def updated(old: int, before: bytes, after: bytes) -> int:
    """RFC 1624: the checksum ``old`` after ``before`` became ``after`` (even lengths)."""
    total = 0xFFFF - old
    for (word,) in struct.iter_unpack(">H", before):
        total += 0xFFFF - word
    for (word,) in struct.iter_unpack(">H", after):
        total += word
    rest = total % 65535
    return 0xFFFF - (rest or (0xFFFF if total else 0))


@dataclass(frozen=True, slots=True)
class Server:
    address: Address
    port: int
    reset: bool = False
    ambiguous: bool = False
    source: Address | None = None
    spread: int = 0
    generation: int = 1


@dataclass(slots=True)
class Service:
    forwarding: str  # nat | fullnat | dsr | tunnel
    members: tuple[int, ...]
    slots: tuple[int, ...]
    seed: bytes
    choice: str = "flow"  # flow | source | turn
    mode: str = "forward"  # forward | reject | drop
    allowed: tuple[IPv4Network | IPv6Network, ...] | None = None
    table: int = 0
    turn: int = 0


@dataclass(slots=True)
class Reply:
    vip: Address
    port: int
    service: int
    server: int
    ambiguous: bool = False
    guess: bool = False
    direct: bool = False


Tuple = tuple[Address, Address, int, int, int]


@dataclass(slots=True)
class Flow:
    kind: str  # server | client | direct
    service: int
    server: int
    generation: int
    table: int
    new: bool  # one packet seen, or SYNs alone
    near: tuple[Address, int] | None = None
    far: tuple[Address, int] | None = None


@dataclass(slots=True)
class Parsed:
    """A packet taken apart; ``raw`` is the IP packet within its own length, ``l4`` an offset into it."""

    family: int
    source: Address
    destination: Address
    protocol: int
    raw: bytes
    l4: int
    ttl: int
    tos: int
    df: bool
    identity: int
    fragment: str  # whole | first | later
    sport: int = 0
    dport: int = 0
    flags: int = 0

    def key(self) -> Tuple:
        return (self.source, self.destination, self.sport, self.dport, self.protocol)

    def is_syn(self) -> bool:
        return self.protocol == TCP and self.flags & (SYN | ACK | RST | FIN) == SYN


@dataclass(slots=True)
class Route:
    kind: str
    service: int
    server: int
    forwarding: str
    source: tuple[Address, int]
    destination: tuple[Address, int]
    hop: Address


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a packet; ``counter`` None: it was forwarded."""

    verdict: int
    frame: bytes
    counter: Counter | None


class Verdict(Exception):
    """The fate of a packet that is not forwarded."""

    def __init__(self, verdict: int, counter: Counter) -> None:
        super().__init__(counter.name)
        self.verdict, self.counter = verdict, counter


def dropped(counter: Counter) -> Verdict:
    return Verdict(DROP, counter)


def passed(counter: Counter) -> Verdict:
    return Verdict(PASS, counter)


class Refused(Exception):
    """A new flow of a service that rejects, or a flow that is reset."""


class Missed(Exception):
    """Nothing is known."""


@dataclass
class Forwarder:
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

    # -- entry

    def process(self, frame: bytes, port: Port) -> Outcome:
        """What becomes of ``frame``, which came in by ``port``."""
        self.noted = []
        self.frame, self.port = frame, port
        try:
            return self._process(frame)
        except Verdict as fate:
            return Outcome(fate.verdict, frame, fate.counter)

    def _process(self, frame: bytes) -> Outcome:
        offset, kind = 12, frame[12:14]
        while kind in (b"\x81\x00", b"\x88\xa8") and offset < 20:
            offset += 4
            kind = frame[offset : offset + 2]
            if len(kind) < 2:
                raise passed(Counter.PASS_MALFORMED)
        self.link = frame[12:offset]
        body = frame[offset + 2 :]
        if kind == b"\x08\x00":
            p = self._parse4(body)
        elif kind == b"\x86\xdd":
            p = self._parse6(body)
        else:
            raise passed(Counter.PASS_UNRELATED)
        self.trailer = body[len(p.raw) :]
        if p.fragment == "later":
            return self._later_fragment(p)
        if p.protocol == (ICMP if p.family == 4 else ICMP6) and p.fragment == "whole":
            return self._icmp(p)
        if p.protocol not in (TCP, UDP):
            raise passed(Counter.PASS_UNRELATED)
        try:
            route = self.decide(p)
        except Refused:
            return self._refuse(p)
        if p.fragment == "first":
            self.noted.append(Counter.FRAGMENT_FIRST)
            key = (p.source, p.destination, p.identity, p.protocol if p.family == 4 else 0)
            self.fragments[key] = (route, self.servers[route.server])
        return self._transmit(p, route)

    # -- parsing

    def _parse4(self, body: bytes) -> Parsed:
        if len(body) < 20 or body[0] >> 4 != 4 or body[0] & 15 < 5:
            raise passed(Counter.PASS_MALFORMED)
        header = (body[0] & 15) * 4
        length = int.from_bytes(body[2:4], "big")
        if length < header or length > len(body):
            raise passed(Counter.PASS_MALFORMED)
        word = int.from_bytes(body[6:8], "big")
        fragment = "later" if word & 0x1FFF else "first" if word & 0x2000 else "whole"
        p = Parsed(
            family=4,
            source=IPv4Address(body[12:16]),
            destination=IPv4Address(body[16:20]),
            protocol=body[9],
            raw=body[:length],
            l4=header,
            ttl=body[8],
            tos=body[1],
            df=bool(word & 0x4000),
            identity=int.from_bytes(body[4:6], "big"),
            fragment=fragment,
        )
        if not self._routable(p.source, p.destination):
            raise passed(Counter.PASS_UNRELATED)
        if fragment == "later":
            if p.protocol not in (TCP, UDP):
                raise passed(Counter.PASS_UNRELATED)
            return p
        return self._ports(p)

    def _parse6(self, body: bytes) -> Parsed:
        if len(body) < 40 or body[0] >> 4 != 6:
            raise passed(Counter.PASS_MALFORMED)
        length = 40 + int.from_bytes(body[4:6], "big")
        if length > len(body):
            raise passed(Counter.PASS_MALFORMED)
        raw = body[:length]
        source, destination = IPv6Address(raw[8:24]), IPv6Address(raw[24:40])
        p = Parsed(6, source, destination, raw[6], raw, 40, raw[7], (raw[0] & 15) << 4 | raw[1] >> 4, True, 0, "whole")
        if not self._routable(p.source, p.destination):
            raise passed(Counter.PASS_UNRELATED)
        for _ in range(6):
            if p.protocol not in (0, 43, 44, 60):
                break
            if p.l4 + 8 > length:
                raise passed(Counter.PASS_MALFORMED)
            head = raw[p.l4 : p.l4 + 8]
            if p.protocol == 44:
                p.identity = int.from_bytes(head[4:8], "big")
                position = int.from_bytes(head[2:4], "big")
                if position >> 3:
                    p.fragment = "later"
                    return p
                if position & 1:
                    p.fragment = "first"
                p.l4 += 8
            else:
                if p.protocol == 43 and head[3]:
                    raise passed(Counter.PASS_UNRELATED)
                p.l4 += (head[1] + 1) * 8
            p.protocol = head[0]
            if 14 + len(self.link) + p.l4 > LAST_OFFSET - 20:
                raise passed(Counter.PASS_UNRELATED)
        return self._ports(p)

    def _ports(self, p: Parsed) -> Parsed:
        needed = {TCP: 20, UDP: 8}.get(p.protocol)
        if needed is None:
            if p.protocol == (ICMP if p.family == 4 else ICMP6) and p.fragment == "whole":
                return p
            raise passed(Counter.PASS_UNRELATED)
        if p.l4 + needed > len(p.raw):
            raise passed(Counter.PASS_MALFORMED)
        p.sport, p.dport = struct.unpack_from(">HH", p.raw, p.l4)
        if p.protocol == TCP:
            p.flags = p.raw[p.l4 + 13]
        return p

    def _routable(self, *addresses: Address) -> bool:
        for address in addresses:
            high = int(address) >> 24
            if address.version == 4 and (high in (0, 127) or high >= 224):
                return False
            if address.version == 6 and (
                int(address) >> 32 in (0, 0xFFFF) or address.is_multicast or address.is_link_local
            ):
                return False
        return True

    # -- deciding

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
        reply.direct = True
        back = (p.destination, p.source, p.dport, p.sport, p.protocol)
        if back not in self.flows:
            self.flows[back] = Flow("direct", reply.service, reply.server, 0, 0, False)

    # -- sending

    def _overhead(self, route: Route) -> int:
        if route.forwarding != "tunnel" or route.kind != "server":
            return 0
        return 20 if route.hop.version == 4 else 40

    def _hop(self, p: Parsed, route: Route, *, icmp: bool = False) -> Hop | Outcome:
        hop = hop_to(route.hop)
        if hop == "local" and route.kind == "client" and route.forwarding == "nat":
            raise passed(Counter.PASS_OWN)
        if isinstance(hop, str):
            raise dropped(Counter.DROP_NO_ROUTE)
        if hop.mac is None:
            if route.kind == "server" and route.forwarding == "nat" and not icmp:
                body = self._rewritten(p, route, decrement=False, seed=self._correct(p) is not None)
                return Outcome(PASS, self._relink(body), Counter.PASS_UNRESOLVED)
            return self._make_resolve(p, route)
        if route.forwarding == "dsr" and hop.gateway:
            raise dropped(Counter.DROP_OFF_LINK)
        return hop

    def _transmit(self, p: Parsed, route: Route) -> Outcome:
        hop = self._hop(p, route)
        if isinstance(hop, Outcome):
            return hop
        translated = route.forwarding in ("nat", "fullnat")
        if translated and p.ttl <= 1:
            raise dropped(Counter.DROP_TTL)
        room = hop.port.mtu - self._overhead(route)
        if len(p.raw) > room:
            return self._too_big(p, room)
        correct = self._correct(p)
        seed = correct is not None and self.port.name in self.generic
        if correct is not None and not seed:
            at = p.l4 + (16 if p.protocol == TCP else 6)
            p = dataclasses.replace(p, raw=p.raw[:at] + correct.to_bytes(2, "big") + p.raw[at + 2 :])
        body = self._rewritten(p, route, decrement=True, seed=seed) if translated else p.raw
        return self._send(p, route, hop, body)

    def _correct(self, p: Parsed) -> int | None:
        """The right checksum of a packet that has the sum of its pseudo header instead, or None."""
        if not self.unfinished or p.fragment != "whole":
            return None
        at = p.l4 + (16 if p.protocol == TCP else 6)
        segment = p.raw[p.l4 :]
        head = pseudo(p.source, p.destination, p.protocol, len(segment))
        there = int.from_bytes(p.raw[at : at + 2], "big")
        if there != 0xFFFF - checksum(head):
            return None
        right = checksum(head + segment[: at - p.l4] + bytes(2) + segment[at - p.l4 + 2 :])
        if p.protocol == UDP:
            right = right or 0xFFFF
        return None if right == there else right

    def _send(self, p: Parsed, route: Route, hop: Hop, body: bytes) -> Outcome:
        family = p.family
        if self._overhead(route):
            body = self._encapsulated(p, route, body)
            family = route.hop.version
        assert hop.mac is not None
        same = hop.port.name == self.port.name
        link = bytes.fromhex(hop.mac.replace(":", "")) + bytes.fromhex(hop.port.mac.replace(":", ""))
        link += (self.link if same else b"") + (b"\x08\x00" if family == 4 else b"\x86\xdd")
        return Outcome(TX if same else REDIRECT, link + body + self.trailer, None)

    def _relink(self, body: bytes, *, swap: bool = False, trailer: bool = True) -> bytes:
        macs = self.frame[6:12] + self.frame[:6] if swap else self.frame[:12]
        kind = b"\x08\x00" if body[0] >> 4 == 4 else b"\x86\xdd"
        return macs + self.link + kind + body + (self.trailer if trailer else b"")

    def _rewritten(self, p: Parsed, route: Route, *, decrement: bool, seed: bool = False) -> bytes:
        raw = bytearray(_with_addresses(p.raw, p.family, route.source[0], route.destination[0]))
        if decrement:
            _decrement(raw, p.family)
        if p.fragment == "later":
            return bytes(raw)
        before = p.source.packed + p.destination.packed + struct.pack(">HH", p.sport, p.dport)
        after = (
            route.source[0].packed
            + route.destination[0].packed
            + struct.pack(">HH", route.source[1], route.destination[1])
        )
        struct.pack_into(">HH", raw, p.l4, route.source[1], route.destination[1])
        if seed:
            head = pseudo(route.source[0], route.destination[0], p.protocol, len(p.raw) - p.l4)
            struct.pack_into(">H", raw, p.l4 + (16 if p.protocol == TCP else 6), 0xFFFF - checksum(head))
            return bytes(raw)
        _patch(raw, p.l4, p.protocol, before, after)
        return bytes(raw)

    def _encapsulated(self, p: Parsed, route: Route, body: bytes) -> bytes:
        server = self.servers[route.server]
        assert server.source is not None
        word = struct.unpack("<I", p.source.packed)[0] if p.family == 4 else 0
        if p.family == 6:
            a, b, c, d = struct.unpack("<4I", p.source.packed)
            word = a ^ b * 3 ^ c * 5 ^ d * 7
        ports = struct.unpack("<I", struct.pack(">HH", p.sport, p.dport))[0] if p.fragment == "whole" else 0
        word = word * 0x9E3779B1 & 0xFFFFFFFF
        word = (word ^ word >> 15 ^ ports) * 0x85EBCA6B & 0xFFFFFFFF
        word ^= word >> 13
        source = bytearray(server.source.packed)
        low = struct.unpack("<I", source[-4:])[0] ^ (word & int.from_bytes(server.spread.to_bytes(4, "big"), "little"))
        source[-4:] = struct.pack("<I", low)
        inner = 4 if p.family == 4 else 41
        if server.address.version == 4:
            head = (
                struct.pack(">BBHHHBBH", 0x45, p.tos, 20 + len(body), 0, 0x4000, 64, inner, 0)
                + source
                + server.address.packed
            )
            return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body
        return (
            struct.pack(">IHBB", 6 << 28 | p.tos << 20 | word & 0xFFFFF, len(body), inner, 64)
            + source
            + server.address.packed
            + body
        )

    def _later_fragment(self, p: Parsed) -> Outcome:
        key = (p.source, p.destination, p.identity, p.protocol if p.family == 4 else 0)
        known = self.fragments.get(key)
        if known is None:
            raise dropped(Counter.DROP_ORPHAN) if p.destination in self.vips else passed(Counter.PASS_UNRELATED)
        self.noted.append(Counter.FRAGMENT_LATER)
        return self._transmit(p, known[0])

    # -- answering

    def _header(self, p: Parsed, protocol: int, body: bytes) -> bytes:
        if p.family == 4:
            head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0)
            head += p.destination.packed + p.source.packed
            return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body
        return struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + p.destination.packed + p.source.packed + body

    def _answer(self, p: Parsed, protocol: int, body: bytes, counter: Counter) -> Outcome:
        return Outcome(TX, self._relink(self._header(p, protocol, body), swap=True, trailer=False), counter)

    def _refuse(self, p: Parsed) -> Outcome:
        if p.protocol != TCP:
            self._may_complain(p, Counter.DROP_UNANSWERABLE)
            return self._error(p, (3, 3) if p.family == 4 else (1, 4), 0, Counter.SENT_UNREACHABLE)
        if p.flags & RST or p.fragment != "whole":
            raise dropped(Counter.DROP_UNANSWERABLE)
        seq, ack = struct.unpack_from(">II", p.raw, p.l4 + 4)
        length = len(p.raw) - p.l4 - (p.raw[p.l4 + 12] >> 4) * 4 + bool(p.flags & SYN) + bool(p.flags & FIN)
        numbers = (ack, 0, RST) if p.flags & ACK else (0, (seq + length) & 0xFFFFFFFF, RST | ACK)
        segment = struct.pack(">HHIIBBHHH", p.dport, p.sport, numbers[0], numbers[1], 5 << 4, numbers[2], 0, 0, 0)
        total = checksum(pseudo(p.destination, p.source, TCP, 20) + segment)
        return self._answer(p, TCP, segment[:16] + total.to_bytes(2, "big") + segment[18:], Counter.SENT_RESET)

    def _may_complain(self, p: Parsed, otherwise: Counter) -> None:
        if p.fragment == "later":
            raise dropped(otherwise)

    def _error(self, p: Parsed, kind: tuple[int, int], data: int, counter: Counter) -> Outcome:
        quote = p.raw[:96] if len(p.raw) >= 96 else p.raw[: len(p.raw) // 4 * 4]
        message = struct.pack(">BBHI", *kind, 0, data) + quote
        head = b"" if p.family == 4 else pseudo(p.destination, p.source, ICMP6, len(message))
        message = message[:2] + checksum(head + message).to_bytes(2, "big") + message[4:]
        return self._answer(p, ICMP if p.family == 4 else ICMP6, message, counter)

    def _too_big(self, p: Parsed, mtu: int) -> Outcome:
        if len(p.raw) > self.port.mtu:
            raise dropped(Counter.DROP_MERGED)
        if not p.df:
            raise dropped(Counter.DROP_TOO_BIG)
        self._may_complain(p, Counter.DROP_TOO_BIG)
        if p.family == 4:
            return self._error(p, (3, 4), max(mtu, 68), Counter.SENT_TOO_BIG)
        return self._error(p, (2, 0), max(mtu, 1280), Counter.SENT_TOO_BIG)

    def _make_resolve(self, p: Parsed, route: Route) -> Outcome:
        if route.hop.version != p.family:
            raise dropped(Counter.DROP_NO_ROUTE)
        turned = dataclasses.replace(p, destination=p.source, source=route.hop)
        if p.family == 4:
            message = bytes((0, 0, 0xFF, 0xFF, 0, 0, 0, 0))
        else:
            total = checksum(pseudo(p.source, route.hop, ICMP6, 8) + bytes((129, 0, 0, 0, 0, 0, 0, 0)))
            message = struct.pack(">BBHI", 129, 0, total, 0)
        body = self._header(turned, ICMP if p.family == 4 else ICMP6, message)
        return Outcome(PASS, self._relink(body, trailer=False), Counter.PASS_RESOLVING)

    # -- ICMP

    def _icmp(self, p: Parsed) -> Outcome:
        if p.l4 + 8 > len(p.raw):
            raise passed(Counter.PASS_MALFORMED)
        kind = p.raw[p.l4]
        if kind == (8 if p.family == 4 else 128):
            return self._echo(p)
        if kind not in ((3, 11, 12) if p.family == 4 else (1, 2, 3, 4)):
            raise passed(Counter.PASS_ICMP)
        if p.raw[p.l4 : p.l4 + 2] == (b"\3\4" if p.family == 4 else b"\2\0"):
            told = self._beyond(p)
            if told is not None:
                return told
        q = self._quoted(p)
        try:
            route = self.decide(q, about=True)
        except (Refused, Missed):
            raise passed(Counter.PASS_ICMP) from None
        return self._send_error(p, q, route)

    def _beyond(self, p: Parsed) -> Outcome | None:
        """A router in a tunnel's path says that a packet is too big; None: it is not about a tunnelled one."""
        start, room = p.l4 + 8, 14 + len(self.link)
        quote = (p.raw + self.trailer)[start:]
        outer = 20 if p.family == 4 else 40
        if len(quote) < outer or room + start > LAST_OFFSET + 2:
            return None
        if p.family == 4:
            if quote[0] != 0x45 or int.from_bytes(quote[6:8], "big") & 0x1FFF:
                return None
            inside, ends = quote[9], (ip_address(quote[12:16]), ip_address(quote[16:20]))
        else:
            if quote[0] >> 4 != 6:
                return None
            inside, ends = quote[6], (ip_address(quote[8:24]), ip_address(quote[24:40]))
        if inside not in (4, 41):
            return None
        mtu = int.from_bytes(p.raw[p.l4 + 4 : p.l4 + 8], "big") & (0xFFFF if p.family == 4 else 0xFFFFFFFF)
        if mtu <= outer:
            raise passed(Counter.PASS_ICMP)
        family = 4 if inside == 4 else 6
        q = self._quoted(dataclasses.replace(p, family=family, l4=p.l4 + outer))
        # The client's packet, in its own direction.
        q = dataclasses.replace(
            q, source=q.destination, destination=q.source, sport=q.dport, dport=q.sport, raw=p.raw[start + outer :]
        )
        try:
            route = self.decide(q, about=True)
        except (Refused, Missed):
            raise passed(Counter.PASS_ICMP) from None
        server = self.servers[route.server]
        if route.forwarding != "tunnel" or route.kind != "server" or route.hop != ends[1] or server.source is None:
            raise passed(Counter.PASS_ICMP)
        differs = int(server.source) ^ int(ends[0])
        if server.source.version != ends[0].version or differs & ~server.spread:
            raise passed(Counter.PASS_ICMP)
        hop = hop_to(q.source)
        if isinstance(hop, str):
            raise dropped(Counter.DROP_NO_ROUTE)
        if hop.mac is None:
            return self._make_resolve(p, dataclasses.replace(route, hop=q.source))
        kind, least = ((3, 4), 68) if family == 4 else ((2, 0), 1280)
        told = self._error(q, kind, max(mtu - outer, least), Counter.SENT_PATH_MTU)
        body = told.frame[14 + len(self.link) :]
        same = hop.port.name == self.port.name
        link = bytes.fromhex(hop.mac.replace(":", "")) + bytes.fromhex(hop.port.mac.replace(":", ""))
        link += (self.link if same else b"") + (b"\x08\x00" if family == 4 else b"\x86\xdd")
        return Outcome(TX if same else REDIRECT, link + body, Counter.SENT_PATH_MTU)

    def _echo(self, p: Parsed) -> Outcome:
        if p.destination not in self.vips:
            raise passed(Counter.PASS_UNRELATED)
        raw = bytearray(_with_addresses(p.raw, p.family, p.destination, p.source))
        if p.family == 4:
            old = bytes(raw[8:10])
            raw[8] = 64
            _put_checksum(raw, 10, old, bytes(raw[8:10]))
        else:
            raw[7] = 64
        old = bytes(raw[p.l4 : p.l4 + 2])
        raw[p.l4] = 0 if p.family == 4 else 129
        _put_checksum(raw, p.l4 + 2, old, bytes(raw[p.l4 : p.l4 + 2]))
        return Outcome(TX, self._relink(bytes(raw), swap=True), Counter.SENT_ECHO)

    def _quoted(self, p: Parsed) -> Parsed:
        """The quoted packet, turned round; its ``l4`` is an offset into the packet that quotes."""
        start = p.l4 + 8
        quote = (p.raw + self.trailer)[start:]
        if len(quote) < (20 if p.family == 4 else 40):
            raise passed(Counter.PASS_ICMP)
        if p.family == 4:
            if quote[0] >> 4 != 4 or quote[0] & 15 < 5 or int.from_bytes(quote[6:8], "big") & 0x1FFF:
                raise passed(Counter.PASS_ICMP)
            header, protocol = (quote[0] & 15) * 4, quote[9]
            source, destination = ip_address(quote[12:16]), ip_address(quote[16:20])
        else:
            if quote[0] >> 4 != 6:
                raise passed(Counter.PASS_ICMP)
            header, protocol = 40, quote[6]
            source, destination = ip_address(quote[8:24]), ip_address(quote[24:40])
        if (
            protocol not in (TCP, UDP)
            or start + header + 8 > len(p.raw)
            or 14 + len(self.link) + start + header > LAST_OFFSET
        ):
            raise passed(Counter.PASS_ICMP)
        if not self._routable(source, destination):
            raise passed(Counter.PASS_ICMP)
        sport, dport = struct.unpack_from(">HH", quote, header)
        return dataclasses.replace(
            p,
            source=destination,
            destination=source,
            sport=dport,
            dport=sport,
            protocol=protocol,
            l4=start + header,
            flags=0,
        )

    def _send_error(self, p: Parsed, q: Parsed, route: Route) -> Outcome:
        hop = self._hop(p, route, icmp=True)
        if isinstance(hop, Outcome):
            return hop
        if len(p.raw) + self._overhead(route) > hop.port.mtu:
            raise dropped(Counter.DROP_TOO_BIG)
        body = p.raw
        if route.forwarding in ("nat", "fullnat"):
            if p.ttl <= 1:
                raise dropped(Counter.DROP_TTL)
            body = self._translated_error(p, q, route)
        self.noted.append(Counter.ICMP_FORWARDED)
        return self._send(p, route, hop, body)

    def _translated_error(self, p: Parsed, q: Parsed, route: Route) -> bytes:
        raw = bytearray(p.raw)
        start = p.l4 + 8
        message = bytes(raw[p.l4 :])
        quote = bytearray(_with_addresses(bytes(raw[start:]), p.family, route.destination[0], route.source[0]))
        l4 = q.l4 - start
        before = q.source.packed + q.destination.packed + struct.pack(">HH", q.sport, q.dport)
        after = (
            route.source[0].packed
            + route.destination[0].packed
            + struct.pack(">HH", route.source[1], route.destination[1])
        )
        struct.pack_into(">HH", quote, l4, route.destination[1], route.source[1])
        if q.protocol == UDP or len(quote) >= l4 + 18:
            _patch(quote, l4, q.protocol, before, after)
        raw[start:] = quote
        odd = b"\0" if len(message) % 2 else b""
        outer_source = route.source[0] if route.forwarding == "fullnat" or p.source == q.source else p.source
        before, after = message + odd, bytes(raw[p.l4 :]) + odd
        if p.family == 6:
            before += p.source.packed + p.destination.packed
            after += outer_source.packed + route.destination[0].packed
        raw[p.l4 + 2 : p.l4 + 4] = updated(int.from_bytes(message[2:4], "big"), before, after).to_bytes(2, "big")
        out = bytearray(_with_addresses(bytes(raw), p.family, outer_source, route.destination[0]))
        _decrement(out, p.family)
        return bytes(out)


def _put_checksum(raw: bytearray, at: int, before: bytes, after: bytes) -> None:
    struct.pack_into(">H", raw, at, updated(int.from_bytes(raw[at : at + 2], "big"), before, after))


def _with_addresses(raw: bytes, family: int, source: Address, destination: Address) -> bytes:
    """The packet with these addresses, its IPv4 header checksum updated."""
    out = bytearray(raw)
    start, end = (12, 20) if family == 4 else (8, 40)
    old = bytes(out[start:end])
    out[start:end] = source.packed + destination.packed
    if family == 4:
        _put_checksum(out, 10, old, bytes(out[start:end]))
    return bytes(out)


def _decrement(raw: bytearray, family: int) -> None:
    if family == 6:
        raw[7] -= 1
        return
    old = bytes(raw[8:10])
    raw[8] -= 1
    _put_checksum(raw, 10, old, bytes(raw[8:10]))


def _patch(raw: bytearray, l4: int, protocol: int, before: bytes, after: bytes) -> None:
    """Update the transport checksum at its place; a UDP checksum of 0 means none, and none is made."""
    at = l4 + (16 if protocol == TCP else 6)
    old = int.from_bytes(raw[at : at + 2], "big")
    if protocol == UDP and old == 0:
        return
    new = updated(old, before, after)
    struct.pack_into(">H", raw, at, new or (0xFFFF if protocol == UDP else 0))
