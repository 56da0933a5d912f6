# SPDX-License-Identifier: Apache-2.0
"""VRRP datagrams on one interface and family: raw sockets of protocol 112.

Invariants: what is received came in by this interface; what is sent leaves by it, with TTL or hop limit 255, from
the source that its checksum covers.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from fairlead.model.net import IPAddress
from fairlead.protocols.vrrp.packet import GROUP_V4, GROUP_V6, PROTOCOL_NUMBER, REQUIRED_TTL

_MTU = 2048
_CONTROL_CLASS = 0xC0  # CS6, network control (RFC 2474): full queues drop it last
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 1 << 20  # advertisements of many routers during a stall
_IP_PKTINFO, _IPV6_PKTINFO, _IPV6_HOPLIMIT = 8, 50, 52


@dataclass(frozen=True, slots=True)
class Datagram:
    """What arrived, without its IP header."""

    data: bytes
    source: IPAddress
    destination: IPAddress
    ttl: int


class Wire:
    """Raises OSError when the sockets cannot be had."""

    def __init__(self, index: int, name: str, family: int) -> None:
        self.index = index
        self.name = name
        self.family = family
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        self._socket = socket.socket(
            kind, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, PROTOCOL_NUMBER
        )
        try:
            self._prepare()
        except BaseException:
            self._socket.close()
            raise

    def _prepare(self) -> None:
        sock = self._socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.name.encode() + b"\0")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 6)
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        if self.family == 4:
            member = struct.pack("4s4si", GROUP_V4.packed, bytes(4), self.index)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, REQUIRED_TTL)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, REQUIRED_TTL)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CONTROL_CLASS)
            return
        group = struct.pack("16si", GROUP_V6.packed, self.index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, REQUIRED_TTL)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, REQUIRED_TTL)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _CONTROL_CLASS)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)

    def fileno(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let go."""
        self._socket.close()

    def send(self, data: bytes, source: IPAddress, destination: IPAddress) -> bool:
        """Send one message; False: the kernel refused it."""
        if self.family == 4:
            info = struct.pack("i4s4s", self.index, source.packed, bytes(4))
            control = [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
            target: tuple[object, ...] = (str(destination), 0)
        else:
            info = struct.pack("16si", source.packed, self.index)
            control = [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, info)]
            target = (str(destination), 0, 0, self.index)
        try:
            self._socket.sendmsg([data], control, 0, target)
        except OSError:
            return False
        return True

    def receive_all(self) -> list[Datagram]:
        """Everything that waits."""
        found: list[Datagram] = []
        while True:
            try:
                data, control, flags, sender = self._socket.recvmsg(_MTU, 256)
            except (BlockingIOError, InterruptedError):
                return found
            except OSError:  # the interface went down; its next state comes by netlink
                return found
            datagram = None if flags & socket.MSG_TRUNC else self._read(data, control, sender)
            if datagram is not None:
                found.append(datagram)

    def _read(self, data: bytes, control: list[tuple[int, int, bytes]], sender: tuple[object, ...]) -> Datagram | None:
        if self.family == 4:  # the IP header comes along
            if len(data) < 20:
                return None
            start = (data[0] & 15) * 4
            return Datagram(data[start:], IPv4Address(data[12:16]), IPv4Address(data[16:20]), data[8])
        ttl, destination = -1, IPv6Address(0)
        for level, kind, value in control:
            if level != socket.IPPROTO_IPV6:
                continue
            if kind == _IPV6_HOPLIMIT:
                ttl = int(struct.unpack("i", value)[0])
            elif kind == _IPV6_PKTINFO:
                destination = IPv6Address(value[:16])
        return Datagram(data, IPv6Address(str(sender[0]).partition("%")[0]), destination, ttl)


def group_of(family: int) -> IPAddress:
    """Where multicast advertisements go."""
    return GROUP_V4 if family == 4 else GROUP_V6
