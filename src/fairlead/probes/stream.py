# SPDX-License-Identifier: Apache-2.0
"""A TCP connection of one attempt: non-blocking, within the attempt's deadline, closed with an RST.

Closed with an RST (``SO_LINGER`` 0), as load balancers do: a FIN would leave a TIME_WAIT here for 60 s per probe, and a
server that is sick need not be asked to agree. The handshake is completed first: a half-open probe (SYN, SYN-ACK, RST)
would be invisible to the application, but would also never notice a process that has stopped accepting.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

from fairlead.model.health import ProbeTarget
from fairlead.model.net import Endpoint, IPAddress
from fairlead.model.pool import MonitorType
from fairlead.model.reasons import DownReason
from fairlead.model.service import ProxyHeader
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import ProbeFailed, failed_there, refused_here
from fairlead.protocols.proxy_header import version_1, version_2_local

CHUNK_BYTES = 4096  # small, so that parsing one chunk from a hostile server never holds the event loop for long
RECEIVED_LIMIT_BYTES = 256 * 1024  # whatever the protocol above makes of it: a certificate chain and 64 kB of answer

# The largest segment that fits every link of IPv6 (1280 bytes) with an outer header before it: the stack does not know
# of the header that probes through a tunnel get after it.
TUNNELLED_SEGMENT = 1280 - 40 - 40 - 20

_ABORT = struct.pack("ii", 1, 0)
_SO_MARK = 36  # asm-generic/socket.h; Python names it from 3.12 on where the C library does
_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python names it from 3.12 on


class ByteStream(Protocol):
    """What HTTP needs of a connection, with TLS or without."""

    async def send(self, data: bytes) -> None:
        """Send all of ``data``."""

    async def recv(self) -> bytes:
        """The next bytes; empty when the server has closed."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a probe goes, after the monitor's overrides, and the PROXY protocol header it begins with.

    Attributes:
        mark: What its packets bear, so that they take the way of a service's; 0: nothing.
        vip: The address that they have on that way; None: that of the server.
    """

    host: str
    port: int
    family: socket.AddressFamily
    source: str | None
    send_proxy: ProxyHeader = ProxyHeader.NONE
    mark: int = 0
    vip: IPAddress | None = None

    @property
    def name(self) -> str:
        """The address as the server sees it, without the interface of a link-local one, which only this node knows."""
        return self.host.partition("%")[0] if self.vip is None else str(self.vip)


def destination(target: ProbeTarget) -> Destination:
    """Where to probe ``target``; a ping has no port.

    Raises:
        ProbeFailed: LOCAL_ERROR, the server has no port of its own and the monitor names none, or there is no mark
            for the way that the probe must take.
    """
    monitor = target.monitor
    address = monitor.address or target.endpoint.address
    passage = monitor.through
    if passage is not None and not target.mark:
        raise ProbeFailed(DownReason.LOCAL_ERROR, "this node: nothing here can send by the way of the service")
    if monitor.type is MonitorType.ICMP:
        port = 0
    elif passage is not None:
        port = passage.vip.port
    elif not (port := monitor.port or target.endpoint.port):
        raise ProbeFailed(DownReason.LOCAL_ERROR, "the server has no port of its own: set `port` in its health")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    source = None if monitor.source is None else str(monitor.source)
    vip = None if passage is None else passage.vip.address
    return Destination(str(address), port, family, source, monitor.send_proxy, target.mark, vip)


def open_socket(to: Destination, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    """A non-blocking socket of ``kind`` for ``to``, bound to its source.

    One whose packets are marked has a local port of its own: the VIP answers all of them, and only their port tells
    whose an answer is.

    Raises:
        ProbeFailed: LOCAL_ERROR.
    """
    try:
        sock = socket.socket(to.family, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise refused_here(error.errno or errno.EIO, "cannot make a socket") from error
    if to.mark:
        _mark(sock, to, kind)
    if to.source is not None or to.mark:
        try:
            # connect() chooses the port then, and shares ports between destinations.
            if kind is socket.SOCK_STREAM and not to.mark:
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((to.source or "", 0))
        except OSError as error:
            sock.close()
            raise refused_here(error.errno or errno.EINVAL, f"cannot send from {to.source or 'any port'}") from error
    return sock


def _mark(sock: socket.socket, to: Destination, kind: socket.SocketKind) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, to.mark)
        if kind is socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, TUNNELLED_SEGMENT)
    except OSError as error:
        sock.close()
        why = "needs CAP_NET_ADMIN" if error.errno == errno.EPERM else os.strerror(error.errno or errno.EINVAL).lower()
        detail = f"this node: marking packets, so that they take the way of the service, {why}"
        raise ProbeFailed(DownReason.LOCAL_ERROR, detail) from error


def refuse_own_vip(sock: socket.socket, to: Destination) -> None:
    """See that a connected socket does not send from the VIP, which the server takes for an address of its own.

    Raises:
        ProbeFailed: LOCAL_ERROR, it does.
    """
    if to.vip is not None and sock.getsockname()[0] == str(to.vip):
        raise ProbeFailed(
            DownReason.LOCAL_ERROR,
            f"this node has no address but the VIP to probe from: give it one, or set `source` ({to.vip} is the "
            "server's own)",
        )


class TcpStream:
    """A connection to ``to``; close it in any case."""

    __slots__ = ("_deadline", "_received", "_sock", "_to")

    def __init__(self, to: Destination, deadline: Deadline) -> None:
        self._to = to
        self._deadline = deadline
        self._received = 0
        self._sock = open_socket(to, socket.SOCK_STREAM)

    def close(self) -> None:
        """Abort the connection."""
        self._sock.close()

    async def connect(self) -> None:
        """Complete the handshake, and send the PROXY protocol header if there is one.

        Raises:
            ProbeFailed: It did not come about.
        """
        sock, to = self._sock, self._to
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        code = sock.connect_ex((to.host, to.port))
        refuse_own_vip(sock, to)
        if code == errno.EINPROGRESS:
            await self._deadline.writable(sock.fileno())
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise failed_there(code, "connect")
        elif code:
            raise refused_here(code, "connect")
        # A port of this very host on which nobody listens can be met by our own SYN (simultaneous open, RFC 9293
        # section 3.5): connected, but to ourselves.
        if sock.getsockname()[1] == to.port and sock.getsockname() == sock.getpeername():
            raise ProbeFailed(DownReason.REFUSED, "connect: nobody listens (the probe met itself)")
        if to.send_proxy is ProxyHeader.V1:
            await self.send(version_1(_end(sock.getsockname()), _end(sock.getpeername())))
        elif to.send_proxy is ProxyHeader.V2:
            await self.send(version_2_local())

    async def send(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises:
            ProbeFailed: The connection failed or the deadline passed.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                await self._deadline.writable(self._sock.fileno())
            except OSError as error:
                raise failed_there(error.errno or errno.EPIPE, self._deadline.doing) from error

    async def recv(self) -> bytes:
        """The next bytes; empty when the server has closed.

        Raises:
            ProbeFailed: The connection failed, the deadline passed, or the server sends without end.
        """
        while True:
            # Waits first: right after sending there is nothing to read yet, and a flood lets others have their turn.
            await self._deadline.readable(self._sock.fileno())
            try:
                data = self._sock.recv(CHUNK_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise failed_there(error.errno or errno.ECONNRESET, self._deadline.doing) from error
            self._received += len(data)
            if self._received > RECEIVED_LIMIT_BYTES:
                raise ProbeFailed(DownReason.TOO_LARGE, f"{self._deadline.doing}: the server sends without end")
            return data


def _end(name: tuple[Any, ...]) -> Endpoint:
    """One end of a connection, as the kernel names it."""
    return Endpoint(ip_address(str(name[0]).partition("%")[0]), int(name[1]))


def authority(to: Destination, default_port: int) -> str:
    """``to`` as a Host header names it (RFC 9110 section 7.2)."""
    name = f"[{to.name}]" if ":" in to.name else to.name
    return name if to.port == default_port else f"{name}:{to.port}"
