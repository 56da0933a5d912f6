# SPDX-License-Identifier: Apache-2.0
"""The whole: from a frame to what becomes of it, and ICMP."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from ipaddress import ip_address

from fairlead.dataplane.xdp.abi import Counter
from support.oracle import headers
from support.oracle.nouns import REDIRECT, TX, Missed, Outcome, Parsed, Refused, Route, Verdict, dropped, passed
from support.oracle.parse import LAST_OFFSET, parse4, parse6, routable
from support.oracle.send import Sender
from support.packets import ICMP, ICMP6, TCP, UDP
from support.xdp import Port, hop_to


@dataclass
class Forwarder(Sender):
    """The oracle."""

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
            p = parse4(body)
        elif kind == b"\x86\xdd":
            p = parse6(body, len(self.link))
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
        raw = bytearray(headers.with_addresses(p.raw, p.family, p.destination, p.source))
        if p.family == 4:
            old = bytes(raw[8:10])
            raw[8] = 64
            headers.put_checksum(raw, 10, old, bytes(raw[8:10]))
        else:
            raw[7] = 64
        old = bytes(raw[p.l4 : p.l4 + 2])
        raw[p.l4] = 0 if p.family == 4 else 129
        headers.put_checksum(raw, p.l4 + 2, old, bytes(raw[p.l4 : p.l4 + 2]))
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
        if not routable(source, destination):
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
        quote = bytearray(headers.with_addresses(bytes(raw[start:]), p.family, route.destination[0], route.source[0]))
        l4 = q.l4 - start
        before = q.source.packed + q.destination.packed + struct.pack(">HH", q.sport, q.dport)
        after = (
            route.source[0].packed
            + route.destination[0].packed
            + struct.pack(">HH", route.source[1], route.destination[1])
        )
        struct.pack_into(">HH", quote, l4, route.destination[1], route.source[1])
        if q.protocol == UDP or len(quote) >= l4 + 18:
            headers.patch(quote, l4, q.protocol, before, after)
        raw[start:] = quote
        odd = b"\0" if len(message) % 2 else b""
        outer_source = route.source[0] if route.forwarding == "fullnat" or p.source == q.source else p.source
        before, after = message + odd, bytes(raw[p.l4 :]) + odd
        if p.family == 6:
            before += p.source.packed + p.destination.packed
            after += outer_source.packed + route.destination[0].packed
        total = headers.updated(int.from_bytes(message[2:4], "big"), before, after)
        raw[p.l4 + 2 : p.l4 + 4] = total.to_bytes(2, "big")
        out = bytearray(headers.with_addresses(bytes(raw), p.family, outer_source, route.destination[0]))
        headers.decrement(out, p.family)
        return bytes(out)
