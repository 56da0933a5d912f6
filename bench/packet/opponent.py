# SPDX-License-Identifier: Apache-2.0
"""The peer's side of a row: an object set up for it, and that its packets took the path the row is about."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from bench.packet.harness import ETHERNET, Contender
from bench.packet.katran import Katran, delivered
from bench.packet.rows import PASS, SERVERS, TX, Met, Peer


class Opponent:
    """A loaded peer that offers what the row needs, with a connection table of ``entries``."""

    def __init__(self, path: Path, peer: Peer, entries: int, cpu: int) -> None:
        self.peer = peer
        self.servers = [ip_address(peer.server) + number for number in range(SERVERS)]
        self.katran = Katran(path, entries, cpu)
        self.katran.serve(ip_address(peer.vip), peer.protocol, self.servers, peer.others)
        self._before = self.katran.counters()

    @property
    def prepare(self) -> Callable[[], None]:
        """What makes it store new flows, or not, in the next test run."""
        return self.katran.flood if self.peer.met is Met.NOT_STORED else self.katran.calm

    def start(self) -> None:
        """What is counted from here on is judged by `check`."""
        self._before = self.katran.counters()

    def check(self, contender: Contender) -> None:
        """Send one more packet; AssertionError when it or those since `start` took another path."""
        verdict, frame = contender.last()
        packets, unknown, fallbacks = (
            after - before for after, before in zip(self.katran.counters(), self._before, strict=True)
        )
        assert not fallbacks, f"{fallbacks} packets met no connection table"
        wanted = {
            Met.KNOWN: (contender.sent, 0),
            Met.STORED: (contender.sent, contender.sent),
            Met.NOT_STORED: (contender.sent, contender.sent),
            Met.NOTHING: (0, 0),
        }[self.peer.met]
        assert (packets, unknown) == wanted, f"peer: {unknown} of {packets} packets met no flow, not {wanted}"
        if self.peer.met is Met.NOTHING:
            assert verdict == PASS, f"peer gave {verdict}"
            assert contender.traffic.holds(frame[ETHERNET:]), "the peer changed a packet it passed"
            return
        assert verdict == TX, f"peer gave {verdict}"
        packet, server = delivered(frame, contender.traffic, self.servers)
        held = None if self.peer.met is Met.NOT_STORED else server
        found = self.katran.server_of(packet)
        assert found == held, f"peer sent to server {server}, its table says {found}"
