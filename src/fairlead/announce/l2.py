# SPDX-License-Identifier: Apache-2.0
"""Tells the neighbours who owns a VIP, and hears who else claims to.

Invariants: frames leave by the interface that carries the VIP and bear its MAC, whatever the routing table says
(F04); both forms of gratuitous ARP are sent (F03); a probe asks without claiming anything.
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from fairlead.model.net import IPAddress
from fairlead.protocols.neighbour import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    ArpOperation,
    arp_probe,
    gratuitous_arp,
    read_advertisement,
    read_arp,
    solicitation,
    unsolicited_advertisement,
)

# Some of these are lost in a switch that still learns, or ignored by hosts that changed the entry less than a second
# ago: five frames over a second, five more after five seconds, then one a minute.
BURST_S = (0.0, 0.05, 0.2, 0.6, 1.1, 5.0, 5.05, 5.2, 5.6, 6.1)
REFRESH_S = 60.0
_FRAME = 2048
_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4


class Port:
    """One interface: sends frames, hears answers. Give it up when the interface's index changes."""

    def __init__(self, index: int, name: str) -> None:
        self.index = index
        self._sender = _packet_socket(0)
        self._sender.bind((name, 0))
        # Two sockets, for one that takes every type of frame would cost the whole traffic a copy.
        self._hearers: list[socket.socket] = []
        for ethertype in (ETHERTYPE_ARP, ETHERTYPE_IPV6):
            hearer = _packet_socket(0)
            if ethertype == ETHERTYPE_IPV6:
                _attach(hearer, _NEIGHBOUR_ADVERTISEMENTS)
            hearer.bind((name, ethertype))
            self._hearers.append(hearer)

    def filenos(self) -> tuple[int, ...]:
        """Of the sockets that may have something to read."""
        return tuple(hearer.fileno() for hearer in self._hearers)

    def close(self) -> None:
        """Let go."""
        for sock in (self._sender, *self._hearers):
            sock.close()

    def announce(self, address: IPAddress, mac: bytes, turn: int, *, router: bool) -> bool:
        """Send one frame; ``turn`` alternates between the forms. False: it could not be sent."""
        if isinstance(address, IPv4Address):
            operation = ArpOperation.REPLY if turn % 2 else ArpOperation.REQUEST
            return self._send(gratuitous_arp(address, mac, operation))
        return self._send(unsolicited_advertisement(address, mac, router=router))

    def probe(self, address: IPAddress, mac: bytes) -> None:
        """Ask who owns it."""
        self._send(arp_probe(address, mac) if isinstance(address, IPv4Address) else solicitation(address, mac))

    def hear(self) -> list[tuple[IPAddress, bytes]]:
        """Every claim that arrived: address and MAC."""
        claims: list[tuple[IPAddress, bytes]] = []
        for hearer in self._hearers:
            while True:
                try:
                    frame, sender = hearer.recvfrom(_FRAME)
                except (BlockingIOError, OSError):  # the interface may be down
                    break
                if sender[2] != _PACKET_OUTGOING and (claim := _claim(frame)) is not None:
                    claims.append(claim)
        return claims

    def _send(self, frame: bytes) -> bool:
        with contextlib.suppress(OSError):
            self._sender.send(frame)
            return True
        return False


def _claim(frame: bytes) -> tuple[IPv4Address | IPv6Address, bytes] | None:
    arp = read_arp(frame)
    if arp is not None:
        return (arp.sender, arp.sender_mac) if int(arp.sender) else None
    return read_advertisement(frame)


@dataclass(slots=True)
class Announcements:
    """When to announce one address next."""

    due: list[float] = field(default_factory=list)
    turn: int = 0

    def burst(self, now: float) -> None:
        """The state of the network has changed."""
        self.due = [now + offset for offset in BURST_S]

    def stop(self) -> None:
        """It is not ours any more."""
        self.due = []

    def next_at(self) -> float | None:
        """When ``take`` wants to be called."""
        return self.due[0] if self.due else None

    def take(self, now: float) -> int | None:
        """The turn of the frame to send now; None: nothing is due."""
        if not self.due or now < self.due[0]:
            return None
        self.due = self.due[1:] or [now + REFRESH_S]
        self.turn += 1
        return self.turn


def _packet_socket(protocol: int) -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)


# Classic BPF: IPv6 with ICMPv6 as its first next header, type 136. (code, jump if true, jump if false, operand)
_NEIGHBOUR_ADVERTISEMENTS = (
    (0x30, 0, 0, 20),  # load byte: next header
    (0x15, 0, 3, 58),
    (0x30, 0, 0, 54),  # load byte: ICMPv6 type
    (0x15, 0, 1, 136),
    (0x06, 0, 0, _FRAME),  # take
    (0x06, 0, 0, 0),  # pass over
)


def _attach(sock: socket.socket, program: tuple[tuple[int, int, int, int], ...]) -> None:
    code = array.array("B", b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), code.buffer_info()[0]))
