# SPDX-License-Identifier: Apache-2.0
"""How packets leave: rewritten, wrapped, or answered."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass

from fairlead.dataplane.xdp.abi import Counter
from support.oracle import headers
from support.oracle.decide import Decisions
from support.oracle.nouns import PASS, REDIRECT, TX, Outcome, Parsed, Route, dropped, passed
from support.packets import ACK, FIN, ICMP, ICMP6, RST, SYN, TCP, UDP, checksum, pseudo
from support.xdp import OUTSIDE, Hop, Port, hop_to


@dataclass
class Sender(Decisions):
    """What becomes of a packet whose route is known, or that is refused."""

    frame: bytes = b""  # that came in
    port: Port = OUTSIDE  # by which
    link: bytes = b""  # its VLAN tags
    trailer: bytes = b""  # what follows its IP packet

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
        raw = bytearray(headers.with_addresses(p.raw, p.family, route.source[0], route.destination[0]))
        if decrement:
            headers.decrement(raw, p.family)
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
        headers.patch(raw, p.l4, p.protocol, before, after)
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
