# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: one for each port and worker, in one SO_REUSEPORT group.

Invariant: the agent keeps every socket open as long as its port is wanted. Connections that wait in a dead worker's
queue stay there and are accepted by its replacement, which gets the same socket.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import DataPlaneError
from fairlead.model.net import Endpoint, IPAddress, Protocol
from fairlead.model.state import Listener

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
BACKLOG = 4096  # the kernel takes the smaller of this and net.core.somaxconn
RECEIVE_BUFFER = 4 << 20  # bytes of datagrams that may wait in one socket
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
MAX_RANGE = 1024  # ports of one listener: each costs a socket in every worker

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; the socket module does not name it


@dataclass(frozen=True, slots=True)
class Port:
    """Where one socket listens."""

    protocol: Protocol
    endpoint: Endpoint

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.protocol}"


def ports_of(listener: Listener) -> Iterable[Port]:
    """The single ports of ``listener``."""
    listen = listener.listen
    return (
        Port(listener.protocol, Endpoint(listen.address, number)) for number in range(listen.first, listen.last + 1)
    )


class Sockets:
    """All listening sockets the agent knows, by port and by the slot of the worker that accepts on them."""

    def __init__(self) -> None:
        self._by_port: dict[Port, dict[int, socket.socket]] = {}
        self._spare: dict[Port, list[socket.socket]] = {}
        self.vips: frozenset[IPAddress] = frozenset()  # may be offered while another node holds them

    def ensure(self, port: Port, slots: Iterable[int]) -> None:
        """Have a listening socket at ``port`` for each slot; all or none of the missing ones are made.

        Raises:
            DataPlaneError: The port cannot be had; the message says why and what to do.
        """
        held = self._by_port.get(port, {})
        missing = [slot for slot in slots if slot not in held]
        if not missing:
            return
        spare = self._spare.get(port, [])
        made: list[socket.socket] = []
        absent = port.endpoint.address in self.vips
        try:
            if len(spare) < len(missing):
                if not self._overlaps(port):
                    _bound(port, shared=False, absent=absent).close()
                made += (_listening(port, absent=absent) for _ in range(len(missing) - len(spare)))
        except OSError as error:
            for sock in made:
                sock.close()
            raise DataPlaneError(_explain(port, error)) from error
        for slot in missing:
            self.put(port, slot, spare.pop() if spare else made.pop())

    def fileno(self, port: Port, slot: int) -> int:
        """The descriptor of that socket."""
        return self._by_port[port][slot].fileno()

    def holds(self, port: Port) -> bool:
        """Whether any socket is held there."""
        return bool(self._by_port.get(port))

    def put(self, port: Port, slot: int, sock: socket.socket) -> None:
        """Take over a socket; one that is held already is closed."""
        old = self._by_port.setdefault(port, {}).pop(slot, None)
        if old is not None:
            old.close()
        self._by_port[port][slot] = sock

    def put_spare(self, port: Port, sock: socket.socket) -> None:
        """Keep a socket for whichever worker needs one there next."""
        self._spare.setdefault(port, []).append(sock)

    def release(self, port: Port) -> None:
        """Close the agent's sockets of a port."""
        for sock in self._by_port.pop(port, {}).values():
            sock.close()

    def release_slot(self, port: Port, slot: int) -> None:
        """Close the socket of one worker at one port."""
        held = self._by_port.get(port, {})
        if slot in held:
            held.pop(slot).close()
        if not held:
            self._by_port.pop(port, None)

    def release_worker(self, slot: int) -> None:
        """Close the sockets of one worker: new connections go to the others."""
        for port in list(self._by_port):
            self.release_slot(port, slot)

    def release_unless(self, wanted: Iterable[Port]) -> None:
        """Close the sockets of all ports but these."""
        for port in self._by_port.keys() - set(wanted):
            self.release(port)

    def release_spare(self) -> None:
        """Close what no worker needed."""
        for spare in self._spare.values():
            for sock in spare:
                sock.close()
        self._spare.clear()

    def close(self) -> None:
        """Close everything; workers keep their own descriptors."""
        self.release_unless(())
        self.release_spare()

    def _overlaps(self, port: Port) -> bool:
        """Whether a socket of our own would make the port look taken."""
        address, number = port.endpoint.address, port.endpoint.port
        if address.is_unspecified:
            own = (*self._by_port, *self._spare)
            return any(
                (it.protocol, it.endpoint.port) == (port.protocol, number)
                and it.endpoint.address.version == address.version
                for it in own
            )
        near = (port, Port(port.protocol, Endpoint(type(address)(0), number)))
        return any(it in self._by_port or it in self._spare for it in near)


def _bound(port: Port, *, shared: bool, absent: bool) -> socket.socket:
    """A socket bound there. Not ``shared``: fails when anybody listens, also a program of the same user.

    ``absent``: whether or not this host has the address now.

    SO_REUSEADDR keeps connections of an earlier listener that linger in TIME_WAIT from looking like a holder; for UDP
    it would let anybody share the port.
    """
    endpoint, stream = port.endpoint, port.protocol is Protocol.TCP
    family = socket.AF_INET if endpoint.address.version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if stream:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if absent:
            level, option = (
                (socket.IPPROTO_IP, _IP_FREEBIND) if family == socket.AF_INET else (socket.IPPROTO_IPV6, _IPV6_FREEBIND)
            )
            sock.setsockopt(level, option, 1)
        sock.bind((str(endpoint.address), endpoint.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _listening(port: Port, *, absent: bool) -> socket.socket:
    """A listening socket; accepted connections inherit TCP_NODELAY and SO_KEEPALIVE.

    Keep-alive (after the kernel's tcp_keepalive_time) ends connections whose peer is gone for good when
    ``idle_timeout`` is off; with it on, that passes first.
    """
    sock = _bound(port, shared=True, absent=absent)
    try:
        if port.protocol is Protocol.UDP:
            _buffer(sock)
            return sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _buffer(sock: socket.socket) -> None:
    """Room for bursts of datagrams: as much as we want with CAP_NET_ADMIN, else as net.core.rmem_max allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _explain(port: Port, error: OSError) -> str:
    endpoint = port.endpoint
    match error.errno:
        case errno.EADDRINUSE:
            letter = "lt" if port.protocol is Protocol.TCP else "lu"
            return (
                f"cannot listen at {endpoint}: another program holds the address; "
                f"find it with: ss -{letter}np 'sport = :{endpoint.port}'"
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"cannot listen at {endpoint}: {endpoint.address} is not an address of this host; add it with: "
                f"ip address add {endpoint.address} dev INTERFACE, or let fairlead own it: `vips:` in the configuration"
            )
        case errno.EACCES | errno.EPERM:
            return (
                f"cannot listen at {endpoint}: ports below net.ipv4.ip_unprivileged_port_start need "
                "CAP_NET_BIND_SERVICE; run as root or grant it (AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit)"
            )
        case errno.EMFILE | errno.ENFILE:
            return (
                f"cannot listen at {endpoint}: out of file descriptors; "
                "raise the limit (LimitNOFILE= in the unit, ulimit -n)"
            )
        case _:
            return f"cannot listen at {endpoint}: {error.strerror}"


def backlog_trouble() -> str | None:
    """Why fewer connections than BACKLOG may wait to be accepted, and what to do, if it is so."""
    try:
        limit = int(SOMAXCONN.read_text())
    except (OSError, ValueError):
        return None
    if limit >= BACKLOG:
        return None
    return f"it is {limit}: bursts of more new connections than that are dropped; set it to {BACKLOG}"
