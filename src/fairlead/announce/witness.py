# SPDX-License-Identifier: Apache-2.0
"""Asks the neighbours once who answers for VIPs; claims nothing, and changes nothing."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterable

from fairlead.announce.l2 import Port
from fairlead.announce.netlink import Netlink
from fairlead.model.net import IPAddress
from fairlead.model.vip import Vip

WAITS_S = (0.25, 0.25, 0.5)  # after each question: an answer takes milliseconds, and a neighbour may miss a question


def who_answers(vips: Iterable[Vip]) -> dict[IPAddress, tuple[str, ...] | None]:
    """MACs of others that answer for each VIP on its interface; None where nobody can be asked."""
    asked = tuple(vips)
    if not asked:
        return {}
    netlink = Netlink()
    try:
        names = {vip.interface for vip in asked}
        links = {link.name: link for link in netlink.links.values() if link.name in names and link.carrier}
    finally:
        netlink.close()
    with contextlib.ExitStack() as stack:
        ports: dict[str, Port] = {}
        for name, link in links.items():
            if not link.loopback:
                with contextlib.suppress(OSError):  # not permitted, or it has just gone
                    ports[name] = Port(link.index, name)
                    stack.callback(ports[name].close)
        heard: dict[IPAddress, set[bytes]] = {vip.address: set() for vip in asked if vip.interface in ports}
        for wait_s in WAITS_S:
            for vip in asked:
                if vip.interface in ports:
                    ports[vip.interface].probe(vip.address, links[vip.interface].mac)
            _listen(ports, {name: links[name].mac for name in ports}, heard, wait_s)
    return {
        vip.address: tuple(sorted(mac.hex(":") for mac in heard[vip.address])) if vip.address in heard else None
        for vip in asked
    }


def _listen(ports: dict[str, Port], own: dict[str, bytes], heard: dict[IPAddress, set[bytes]], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    by_descriptor = {fd: name for name, port in ports.items() for fd in port.filenos()}
    while by_descriptor and (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select(list(by_descriptor), [], [], left)
        for name in {by_descriptor[fd] for fd in ready}:
            for address, mac in ports[name].hear():
                if mac != own[name] and address in heard:
                    heard[address].add(mac)
