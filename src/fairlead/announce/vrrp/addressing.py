# SPDX-License-Identifier: Apache-2.0
"""With which addresses an instance speaks, about which, and whom it hears (RFC 9568 sections 5.1.1.1, 5.1.2.1, 5.2.9).

Invariant: nothing is sent or changed here.
"""

from __future__ import annotations

from fairlead.announce.netlink import Netlink
from fairlead.model.net import IPAddress
from fairlead.model.vip import Vip, VrrpInstance
from fairlead.protocols.vrrp.machine import OWNER_PRIORITY
from fairlead.protocols.vrrp.packet import MAX_ADDRESSES


def advertised(instance: VrrpInstance, vips: tuple[Vip, ...], family: int) -> tuple[IPAddress, ...]:
    """Addresses of its family on its interface; over IPv6 a link-local one first (RFC 9568 section 5.2.9)."""
    found = [vip.address for vip in vips if vip.interface == instance.interface and vip.address.version == family]
    if family == 6:
        found.sort(key=lambda address: not address.is_link_local)
    return tuple(found[:MAX_ADDRESSES])


def source(host: Netlink, instance: VrrpInstance, vips: tuple[Vip, ...], family: int, index: int) -> IPAddress | None:
    """What it sends from: the primary address, or over IPv6 one of the scope that its peers have.

    Args:
        host: Links and addresses.
        instance: What is configured.
        vips: Its addresses.
        family: 4 or 6.
        index: Of its interface.
    """
    own = {vip.address for vip in vips}
    link_local = family == 6 and not any(not peer.is_link_local for peer in instance.peers)
    for (where, address), found in host.addresses.items():
        fits = where == index and address.version == family and address not in own
        if not fits or found.secondary or host.is_ours(found):
            continue
        if family == 4 or address.is_link_local == link_local:
            return address
    if family == 4 and instance.priority == OWNER_PRIORITY:
        return next((a for (where, a) in host.addresses if where == index and a in own), None)
    return None


def is_neighbour(host: Netlink, instance: VrrpInstance, sender: IPAddress, index: int | None) -> bool:
    """Whether advertisements from there count: a peer, or with multicast a host of this network.

    Args:
        host: Links and addresses.
        instance: What is configured.
        sender: Where one came from.
        index: Of the interface that it came by; None: the instance has none now.
    """
    if instance.peers:
        return sender in instance.peers
    if index is None or sender.version == 6:
        return sender.is_link_local
    return any(
        where == index and address.version == 4 and _same_network(found.address, sender, found.prefix)
        for (where, address), found in host.addresses.items()
    )


def _same_network(a: IPAddress, b: IPAddress, prefix: int) -> bool:
    return int(a) >> a.max_prefixlen - prefix == int(b) >> b.max_prefixlen - prefix
