# SPDX-License-Identifier: Apache-2.0
"""The host's links and addresses: read, watched and changed through rtnetlink. The only place that does so.

Invariants: every address that is added here carries ``ADDRESS_PROTOCOL`` (and, over IPv4, a label), so that one left
behind is known again; when the kernel had to drop news (ENOBUFS), or a dump was interrupted by changes, all is read
anew, at most twice a second, and the watcher is told (F45); only the kernel is believed.
Requests wait for the kernel's answer, which it gives before it returns from the call.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

from fairlead.model.net import IPAddress
from fairlead.protocols import rtnetlink
from fairlead.protocols.rtnetlink import InterfaceAddress, Interrupted, Link, Message, Outcome

ADDRESS_PROTOCOL = 0xFA  # of those that neither the kernel nor another known program uses
LABEL_SUFFIX = ":fl"
_LABEL_LIMIT = 15  # IFNAMSIZ without its final zero
_BUFFER = 1 << 16
_WATCH_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33
DUMP_S = 0.5  # between two that lost news make necessary


class Netlink:
    """Links by index and addresses by interface, kept up to date by ``read_news``.

    Args:
        buffer: Bytes of news that the kernel may keep for this process; what exceeds them is lost.
    """

    def __init__(self, buffer: int = _WATCH_BUFFER) -> None:
        self.links: dict[int, Link] = {}
        self.addresses: dict[tuple[int, IPAddress], InterfaceAddress] = {}
        self._sequence = 0
        self._request = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._request.settimeout(5.0)
        self._watch = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._watch.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        except PermissionError:  # then no more than net.core.rmem_max
            self._watch.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        groups = rtnetlink.LINK_GROUP | rtnetlink.IPV4_ADDRESS_GROUP | rtnetlink.IPV6_ADDRESS_GROUP
        self._lost = False  # what is known is not all
        self._dump_at = -math.inf
        self._watch.bind((0, groups))  # before the first dump: nothing falls between the two
        self._read_all()

    def fileno(self) -> int:
        """Of the socket that has news."""
        return self._watch.fileno()

    def close(self) -> None:
        """Let go."""
        self._request.close()
        self._watch.close()

    def read_news(self, now: float) -> bool:
        """Take in what happened since; True when anything did."""
        changed = self._drain()
        if self._lost and now >= self._dump_at:
            self._dump_at = now + DUMP_S
            self._read_all()
            changed = True
        return changed

    def next_at(self) -> float | None:
        """When ``read_news`` wants to be called although there may be none."""
        return self._dump_at if self._lost else None

    def _drain(self) -> bool:
        """Take in all that is waiting; True when anything was.

        A dump is made after this alone: once news were lost the kernel drops all others until nothing is left to
        read, and what is left is older than a dump would be, so that an address would come back that has gone.
        """
        changed = False
        while True:
            try:
                data, sender = self._watch.recvfrom(_BUFFER)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._lost = True
                continue
            if sender[0] != 0:
                continue
            for message in rtnetlink.parse(data):
                self._take(message)
                changed = True

    def link(self, name: str) -> Link | None:
        """The interface of this name, if there is one."""
        return next((link for link in self.links.values() if link.name == name), None)

    def primary(self, index: int, family: int) -> InterfaceAddress | None:
        """What VRRP sends from: the first address that is none of ours; over IPv6 a link-local one."""
        found = [
            address
            for (where, ip), address in self.addresses.items()
            if where == index and ip.version == family and not self.is_ours(address) and not address.secondary
        ]
        if family == 6:
            return next((address for address in found if address.address.is_link_local), None)
        return found[0] if found else None

    def is_ours(self, address: InterfaceAddress) -> bool:
        """Whether fairlead put it there; kernels before 5.18 keep no protocol, there the label tells."""
        return address.protocol == ADDRESS_PROTOCOL or (address.protocol == 0 and address.label.endswith(LABEL_SUFFIX))

    def add(self, index: int, address: IPAddress, prefix: int) -> None:
        """Have the address on the interface.

        Raises:
            OSError: The kernel refuses it.
        """
        name = self.links[index].name if index in self.links else ""
        label = name + LABEL_SUFFIX if address.version == 4 and len(name) <= _LABEL_LIMIT - len(LABEL_SUFFIX) else ""
        wanted = InterfaceAddress(index, address, prefix, label, ADDRESS_PROTOCOL)
        error = self._ask(rtnetlink.add_address(self._next(), wanted))
        if error and error != errno.EEXIST:
            raise OSError(error, os.strerror(error))
        if not error:
            self.addresses[index, address] = wanted

    def remove(self, address: InterfaceAddress) -> None:
        """Have the address on the interface no more.

        Raises:
            OSError: The kernel refuses it.
        """
        error = self._ask(rtnetlink.delete_address(self._next(), address))
        if error and error not in (errno.EADDRNOTAVAIL, errno.ENODEV):
            raise OSError(error, os.strerror(error))
        self.addresses.pop((address.index, address.address), None)

    def _read_all(self) -> None:
        self._lost = False
        self.links.clear()
        self.addresses.clear()
        for request in (rtnetlink.dump_links, rtnetlink.dump_addresses):
            self._ask(request(self._next()), self._take)

    def _take(self, message: Message) -> None:
        match message:
            case Link(deleted=True):
                self.links.pop(message.index, None)
                for key in [key for key in self.addresses if key[0] == message.index]:
                    del self.addresses[key]
            case Link():
                known = self.links.get(message.index)
                # Some news about a link leave its name and address out.
                if known is not None and not message.name:
                    message = replace(message, name=known.name, mac=message.mac or known.mac)
                self.links[message.index] = message
            case InterfaceAddress(deleted=True):
                self.addresses.pop((message.index, message.address), None)
            case InterfaceAddress():
                self.addresses[message.index, message.address] = message
            case Interrupted():
                self._lost = True

    def _next(self) -> int:
        self._sequence = self._sequence % 0x7FFFFFFF + 1
        return self._sequence

    def _ask(self, request: bytes, take: Callable[[Message], None] | None = None) -> int:
        """Send ``request``, give ``take`` what is told; the errno of the outcome."""
        self._request.send(request)
        for message in self._replies():
            if isinstance(message, Outcome):
                if message.sequence == self._sequence:
                    return message.error
            elif take is not None:
                take(message)
        raise AssertionError("a netlink request ends with its outcome")

    def _replies(self) -> Iterator[Message]:
        while True:
            data, sender = self._request.recvfrom(_BUFFER)
            if sender[0] == 0:
                yield from rtnetlink.parse(data)
