# SPDX-License-Identifier: Apache-2.0
"""Listening sockets: one for each port and worker, in one SO_REUSEPORT group.

Invariant: the agent keeps every socket open as long as its port is wanted. Connections that wait in a dead worker's
queue stay there and are accepted by its replacement, which gets the same socket.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from fairlead.errors import DataPlaneError
from fairlead.model.net import Endpoint, IPAddress, Listen

BACKLOG = 4096  # the kernel takes the smaller of this and net.core.somaxconn
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
MAX_RANGE = 1024  # ports of one listener: each costs a socket in every worker


def endpoints(listen: Listen) -> Iterable[Endpoint]:
    """The single ports of ``listen``."""
    return (Endpoint(listen.address, port) for port in range(listen.first, listen.last + 1))


class Sockets:
    """All listening sockets the agent knows, by port and by the slot of the worker that accepts on them."""

    def __init__(self) -> None:
        self._by_port: dict[Endpoint, dict[int, socket.socket]] = {}
        self._spare: dict[Endpoint, list[socket.socket]] = {}
        self.vips: frozenset[IPAddress] = frozenset()  # may be offered while another node holds them

    def ensure(self, endpoint: Endpoint, slots: Iterable[int]) -> None:
        """Have a listening socket at ``endpoint`` for each slot; all or none of the missing ones are made.

        Raises:
            DataPlaneError: The port cannot be had; the message says why and what to do.
        """
        held = self._by_port.get(endpoint, {})
        missing = [slot for slot in slots if slot not in held]
        if not missing:
            return
        spare = self._spare.get(endpoint, [])
        made: list[socket.socket] = []
        absent = endpoint.address in self.vips
        try:
            if len(spare) < len(missing):
                if not self._overlaps(endpoint):
                    _bound(endpoint, shared=False, absent=absent).close()
                made += (_listening(endpoint, absent=absent) for _ in range(len(missing) - len(spare)))
        except OSError as error:
            for sock in made:
                sock.close()
            raise DataPlaneError(_explain(endpoint, error)) from error
        for slot in missing:
            self.put(endpoint, slot, spare.pop() if spare else made.pop())

    def fileno(self, endpoint: Endpoint, slot: int) -> int:
        """The descriptor of that socket."""
        return self._by_port[endpoint][slot].fileno()

    def holds(self, endpoint: Endpoint) -> bool:
        """Whether any socket is held there."""
        return bool(self._by_port.get(endpoint))

    def put(self, endpoint: Endpoint, slot: int, sock: socket.socket) -> None:
        """Take over a socket; one that is held already is closed."""
        old = self._by_port.setdefault(endpoint, {}).pop(slot, None)
        if old is not None:
            old.close()
        self._by_port[endpoint][slot] = sock

    def put_spare(self, endpoint: Endpoint, sock: socket.socket) -> None:
        """Keep a socket for whichever worker needs one there next."""
        self._spare.setdefault(endpoint, []).append(sock)

    def release(self, endpoint: Endpoint) -> None:
        """Close the agent's sockets of a port."""
        for sock in self._by_port.pop(endpoint, {}).values():
            sock.close()

    def release_slot(self, endpoint: Endpoint, slot: int) -> None:
        """Close the socket of one worker at one port."""
        held = self._by_port.get(endpoint, {})
        if slot in held:
            held.pop(slot).close()
        if not held:
            self._by_port.pop(endpoint, None)

    def release_worker(self, slot: int) -> None:
        """Close the sockets of one worker: new connections go to the others."""
        for endpoint in list(self._by_port):
            self.release_slot(endpoint, slot)

    def release_unless(self, wanted: Iterable[Endpoint]) -> None:
        """Close the sockets of all ports but these."""
        for endpoint in self._by_port.keys() - set(wanted):
            self.release(endpoint)

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

    def _overlaps(self, endpoint: Endpoint) -> bool:
        """Whether a socket of our own would make the port look taken."""
        address, port = endpoint.address, endpoint.port
        if address.is_unspecified:
            own = (*self._by_port, *self._spare)
            return any(it.port == port and it.address.version == address.version for it in own)
        near = (endpoint, Endpoint(type(address)(0), port))
        return any(it in self._by_port or it in self._spare for it in near)


def _bound(endpoint: Endpoint, *, shared: bool, absent: bool) -> socket.socket:
    """A socket bound there. Not ``shared``: fails when anybody listens, also a program of the same user.

    ``absent``: whether or not this host has the address now.

    SO_REUSEADDR keeps connections of an earlier listener that linger in TIME_WAIT from looking like a holder.
    """
    family = socket.AF_INET if endpoint.address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
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


def _listening(endpoint: Endpoint, *, absent: bool) -> socket.socket:
    """A listening socket; accepted connections inherit TCP_NODELAY and SO_KEEPALIVE.

    Keep-alive (after the kernel's tcp_keepalive_time) ends connections whose peer is gone for good when
    ``idle_timeout`` is off; with it on, that passes first.
    """
    sock = _bound(endpoint, shared=True, absent=absent)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _explain(endpoint: Endpoint, error: OSError) -> str:
    port = endpoint.port
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"cannot listen at {endpoint}: another program holds the address; "
                f"find it with: ss -ltnp 'sport = :{port}'"
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
