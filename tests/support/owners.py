# SPDX-License-Identifier: Apache-2.0
"""Who owned an address when: told by the kernels of the nodes, and by the advertisements on the switch."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface

from fairlead.protocols import rtnetlink
from fairlead.protocols.rtnetlink import InterfaceAddress
from support.netns import Lan, Node

_ETH_P_IP, _VRRP = 0x0800, 112
_PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC, _SOL_PACKET = 1, 1, 263


@dataclass(frozen=True, slots=True)
class Heard:
    """One advertisement; ``at`` is monotonic seconds."""

    at: float
    source: str
    priority: int


class Owners:
    """Remembers every change; use ``watch()``."""

    def __init__(self, net: Lan, nodes: Sequence[Node], vips: Mapping[str, str]) -> None:
        self.adverts: list[Heard] = []
        self._changes: dict[str, list[tuple[float, frozenset[str]]]] = {}
        self._vips = {ip_interface(vip).ip: vip for vip in vips}
        self._kernels: dict[socket.socket, str] = {}
        with net.inside():
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
            self._wire.bind(("br0", _ETH_P_IP))
            wish = struct.pack("iHH8s", socket.if_nametoindex("br0"), _PACKET_MR_PROMISC, 0, b"")
            self._wire.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wish)
        for node in nodes:
            with node.inside():
                kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                kernel.bind((0, rtnetlink.IPV4_ADDRESS_GROUP))
            self._kernels[kernel] = node.name
        began = time.monotonic()
        for vip, interface in vips.items():
            holders = frozenset(node.name for node in nodes if node.holds(vip, interface))
            self._changes[vip] = [(began, holders)]
        self._end, self._ending = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        sockets: list[socket.socket | int] = [self._wire, *self._kernels, self._end]
        while True:
            ready, _, _ = select.select(sockets, [], [])
            now = time.monotonic()
            for one in ready:
                if one is self._wire:
                    self._advert(one.recv(2048), now)
                elif isinstance(one, socket.socket):
                    self._change(one, now)
                else:
                    return

    def _advert(self, packet: bytes, now: float) -> None:
        if packet[9] == _VRRP:
            at = (packet[0] & 15) * 4
            self.adverts.append(Heard(now, socket.inet_ntoa(packet[12:16]), packet[at + 2]))

    def _change(self, kernel: socket.socket, now: float) -> None:
        for message in rtnetlink.parse(kernel.recv(1 << 16)):
            vip = self._vips.get(message.address) if isinstance(message, InterfaceAddress) else None
            if vip is None or not isinstance(message, InterfaceAddress):
                continue
            before, name = self._changes[vip][-1][1], self._kernels[kernel]
            self._changes[vip].append((now, before - {name} if message.deleted else before | {name}))

    def of(self, vip: str) -> frozenset[str]:
        """Who holds it now."""
        return self._changes[vip][-1][1]

    def most(self, vip: str, since: float) -> int:
        """The largest number of nodes that held it at once after ``since`` (monotonic seconds)."""
        return max(len(names) for _, _, names in self._spans(vip, since))

    def shared_s(self, vip: str, since: float) -> float:
        """How long more than one node held it after ``since``, all together."""
        return sum(end - begin for begin, end, names in self._spans(vip, since) if len(names) > 1)

    def nobody_s(self, vip: str, since: float) -> float:
        """How long no node held it after ``since``, all together."""
        return sum(end - begin for begin, end, names in self._spans(vip, since) if not names)

    def _spans(self, vip: str, since: float) -> Iterator[tuple[float, float, frozenset[str]]]:
        changes = [*self._changes[vip], (time.monotonic(), frozenset())]
        for (begin, names), (end, _) in itertools.pairwise(changes):
            if end > since:
                yield max(begin, since), end, names

    def speakers(self, since: float) -> dict[str, float]:
        """Who advertised a priority above 0 after ``since``, and how long after that for the last time."""
        return {heard.source: heard.at - since for heard in self.adverts if heard.at >= since and heard.priority}

    def close(self) -> None:
        """Watch no more."""
        os.write(self._ending, b".")
        self._thread.join()
        os.close(self._end)
        os.close(self._ending)
        for sock in (self._wire, *self._kernels):
            sock.close()


@contextlib.contextmanager
def watch(net: Lan, nodes: Sequence[Node], vips: Mapping[str, str]) -> Iterator[Owners]:
    """Watch these VIPs (ADDRESS/PREFIX, and their interface) while the block runs."""
    made = Owners(net, nodes, vips)
    try:
        yield made
    finally:
        made.close()
