# SPDX-License-Identifier: Apache-2.0
"""Routing rules of ``transparent``: what servers answer to a client's address comes to the workers' sockets.

Invariants: every rule and route here carries ``rtrules.OWNER``, so that one left behind is known again; they go when
the last transparent service goes, and when the data plane stops; they stay when it is detached.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

from fairlead.dataplane.proxy.registry import Registry
from fairlead.errors import DataPlaneError
from fairlead.model.net import Protocol
from fairlead.model.state import ServiceSpec
from fairlead.protocols import rtrules
from fairlead.protocols.rtrules import Rule

_BUFFER = 1 << 16
_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.EAFNOSUPPORT})


class Routes:
    """Follows the registry; reads the kernel's rules each time, so that what was changed by others is repaired."""

    def __init__(self) -> None:
        self._sequence = 0
        self._clean = False  # nothing of ours is in the kernel

    def follow(self, registry: Registry) -> None:
        """Have the rules of all transparent services, and no others.

        Raises:
            DataPlaneError: The kernel refuses; the message says what is needed.
        """
        used = any(it.spec.transparent for it in registry.services.values())
        if used or not self._clean:
            self._make(frozenset(_rules(registry)), used=used)
        self._clean = not used

    def remove(self) -> None:
        """Leave nothing behind.

        Raises:
            DataPlaneError: The kernel refuses.
        """
        if not self._clean:
            self._make(frozenset(), used=False)
            self._clean = True

    def _make(self, wanted: frozenset[Rule], *, used: bool) -> None:
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
                sock.settimeout(5.0)
                for version in (4, 6):
                    self._make_family(sock, version, wanted)
        except PermissionError as error:
            if used:
                raise DataPlaneError("`transparent` needs CAP_NET_ADMIN to set up its routing rules") from error
        except OSError as error:
            raise DataPlaneError(f"the routing rules of `transparent` cannot be set up: {error.strerror}") from error

    def _make_family(self, sock: socket.socket, version: int, wanted: frozenset[Rule]) -> None:
        loopback = socket.if_nametoindex("lo")
        mine = {rule for rule in wanted if rule.source.version == version}
        held: set[Rule] = set()
        self._ask(sock, rtrules.dump_rules(self._next(), version), frozenset({errno.EAFNOSUPPORT}), held)
        if mine:
            self._ask(sock, rtrules.add_local_route(self._next(), version, loopback))
        for rule in mine - held:
            self._ask(sock, rtrules.add_rule(self._next(), rule), frozenset({errno.EEXIST}))
        for rule in held - mine:
            self._ask(sock, rtrules.delete_rule(self._next(), rule), _GONE)
        if held and not mine:
            self._ask(sock, rtrules.delete_local_route(self._next(), version, loopback), _GONE)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _ask(
        self, sock: socket.socket, request: bytes, fine: frozenset[int] = frozenset(), held: set[Rule] | None = None
    ) -> None:
        sock.send(request)
        while True:
            data, sender = sock.recvfrom(_BUFFER)
            if sender[0] != 0:  # only the kernel is believed
                continue
            for found in rtrules.parse(data):
                if isinstance(found, Rule):
                    if held is not None:
                        held.add(found)
                elif found.sequence == self._sequence:
                    if found.error and found.error not in fine:
                        raise OSError(found.error, os.strerror(found.error))
                    return


def _rules(registry: Registry) -> Iterator[Rule]:
    for name, service in registry.services.items():
        if service.spec.transparent:
            yield from _rules_of(registry, name, service.spec)


def _rules_of(registry: Registry, name: str, spec: ServiceSpec) -> Iterator[Rule]:
    """Of all servers of its pool: also those that are down or leave may have flows."""
    number = _NUMBERS[spec.protocol]
    for key, server in registry.servers.items():
        at = server.endpoint
        if key.partition("/")[0] != spec.pool:
            continue
        if at.port:
            yield Rule(at.address, number, at.port, at.port)
            continue
        for port, owner in registry.ports.items():  # the server has the port that the client used
            if owner == name:
                yield Rule(at.address, number, port.endpoint.port, port.endpoint.port)
