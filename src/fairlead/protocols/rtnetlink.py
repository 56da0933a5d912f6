# SPDX-License-Identifier: Apache-2.0
"""Messages of rtnetlink(7) about links and addresses, as bytes: requests out, what the kernel says in.

Invariant: ``parse`` takes whatever a kernel sends; what it does not know it passes over, what is cut short it drops.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from fairlead.model.net import IPAddress

LINK_GROUP, IPV4_ADDRESS_GROUP, IPV6_ADDRESS_GROUP = 0x1, 0x10, 0x100
_AF_INET, _AF_INET6 = 2, 10

_ERROR, _DONE = 2, 3
_NEW_LINK, _DEL_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _DEL_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _GET_ROUTE = 24, 26
_NEW_NEIGHBOUR, _GET_NEIGHBOUR = 28, 30

_REQUEST, _ACK, _INTERRUPTED, _DUMP, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x10, 0x300, 0x200, 0x400

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, prefix lengths, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")

_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 3, 4, 6, 8, 11
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 1, 3, 4, 5, 18, 37
_IFLA_XDP, _IFLA_TARGET_NETNSID = 43, 46
_IFLA_INFO_KIND = 1
_IFLA_XDP_ATTACHED, _IFLA_XDP_PROG_ID = 2, 4
_XDP_GENERIC = 2  # XDP_ATTACHED_SKB
_IFA_F_SECONDARY, _IFA_F_NODAD = 0x01, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 7, 18
_NDA_DST, _NDA_LLADDR = 1, 2
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_FOREVER = 0xFFFFFFFF
_SCOPE_LINK = 253

_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING, _IFF_NOARP, _IFF_LOWER_UP = 0x1, 0x8, 0x40, 0x80, 0x10000


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; ``carrier``: up, and connected to something. ``deleted``: it has gone.

    Attributes:
        kind: Of a virtual one: ``veth``, ``ipip`` ...; empty for hardware.
        mtu: 0 when the message does not say.
        arp: Neighbours are asked for there.
        peer: Index of what it is tied to (the other end of a veth), 0 for nothing.
        peer_namespace: The peer's network namespace, as this one numbers it; None: this one.
        program: Id of its XDP program, 0 for none.
        generic: That program runs in generic mode.
    """

    index: int
    name: str
    mac: bytes
    carrier: bool
    loopback: bool = False
    deleted: bool = False
    kind: str = ""
    mtu: int = 0
    arp: bool = True
    peer: int = 0
    peer_namespace: int | None = None
    program: int = 0
    generic: bool = False


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address on an interface. ``protocol``: who put it there (IFA_PROTO), 0 when unknown."""

    index: int
    address: IPAddress
    prefix: int
    label: str = ""
    protocol: int = 0
    secondary: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Where the kernel sends packets for ``destination``.

    Attributes:
        index: Of the interface.
        source: The address that they come from, unless they have one.
        gateway: None when the destination is on the link.
        local: It is an address of this host.
        usable: Neither a blackhole nor forbidden.
    """

    destination: IPAddress
    index: int
    source: IPAddress | None
    gateway: IPAddress | None
    local: bool
    usable: bool


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What the host knows of a neighbour's link address; ``mac`` is empty while it is asked for."""

    index: int
    address: IPAddress
    mac: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a request: 0, or a positive errno. Ends a dump as well."""

    sequence: int
    error: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Things changed while a dump was made, which may lack some of them (NLM_F_DUMP_INTR): ask again."""


Message = Link | InterfaceAddress | Route | Neighbour | Outcome | Interrupted


def add_address(sequence: int, address: InterfaceAddress) -> bytes:
    """Add an address; fails with EEXIST when the interface has it.

    IPv6 addresses need no duplicate address detection, which would keep a VIP away for a second: that nobody else
    holds it was decided already. They are never a source that the kernel chooses, like secondary ones of IPv4.
    """
    attributes = attribute(_IFA_PROTO, bytes([address.protocol]))
    if address.address.version == 4:
        host_bits = (1 << 32 - address.prefix) - 1
        if address.prefix < 31:
            attributes += attribute(_IFA_BROADCAST, (int(address.address) | host_bits).to_bytes(4, "big"))
        if address.label:
            attributes += attribute(_IFA_LABEL, address.label.encode() + b"\0")
    else:
        attributes += attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
        attributes += attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, _FOREVER, 0, 0))
    flags = _REQUEST | _ACK | _CREATE | _EXCLUSIVE
    return message(_NEW_ADDRESS, flags, sequence, _address_body(address) + attributes)


def delete_address(sequence: int, address: InterfaceAddress) -> bytes:
    """Remove an address; fails with EADDRNOTAVAIL when the interface does not have it."""
    return message(_DEL_ADDRESS, _REQUEST | _ACK, sequence, _address_body(address))


def dump_links(sequence: int) -> bytes:
    """Ask for all links."""
    return message(_GET_LINK, _REQUEST | _DUMP, sequence, _LINK.pack(0, 0, 0, 0, 0))


def get_link(sequence: int, index: int, namespace: int | None = None) -> bytes:
    """Ask for one link, also one of another network namespace, by the number that this one has for it."""
    where = b"" if namespace is None else attribute(_IFLA_TARGET_NETNSID, struct.pack("=i", namespace))
    return message(_GET_LINK, _REQUEST | _ACK, sequence, _LINK.pack(0, 0, index, 0, 0) + where)


def dump_addresses(sequence: int) -> bytes:
    """Ask for all addresses."""
    return message(_GET_ADDRESS, _REQUEST | _DUMP, sequence, _ADDRESS.pack(0, 0, 0, 0, 0))


def get_route(sequence: int, destination: IPAddress) -> bytes:
    """Ask where packets for ``destination`` go; answered by one Route, or by an Outcome with an error."""
    family = _AF_INET if destination.version == 4 else _AF_INET6
    body = _ROUTE.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    return message(_GET_ROUTE, _REQUEST | _ACK, sequence, body + attribute(_RTA_DST, destination.packed))


def dump_neighbours(sequence: int) -> bytes:
    """Ask for all neighbours."""
    return message(_GET_NEIGHBOUR, _REQUEST | _DUMP, sequence, _NEIGHBOUR.pack(0, 0, 0, 0, 0))


def parse(data: bytes) -> Iterator[Message]:
    """What one datagram from the kernel says."""
    for kind, flags, sequence, body in datagram(data):
        if flags & _INTERRUPTED:
            yield Interrupted()
        found = _read(kind, sequence, body)
        if found is not None:
            yield found


def datagram(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and body of each message in it."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += aligned(length)


def outcome(kind: int, sequence: int, body: bytes) -> Outcome | None:
    """What a message says about a request, if that is what it is for."""
    if kind not in (_ERROR, _DONE):
        return None
    return Outcome(sequence, -int(struct.unpack_from("=i", body)[0]) if len(body) >= 4 else 0)


def _read(kind: int, sequence: int, body: bytes) -> Message | None:
    if (ended := outcome(kind, sequence, body)) is not None:
        return ended
    if kind in (_NEW_LINK, _DEL_LINK) and len(body) >= _LINK.size:
        return _read_link(body, deleted=kind == _DEL_LINK)
    if kind in (_NEW_ADDRESS, _DEL_ADDRESS) and len(body) >= _ADDRESS.size:
        return _read_address(body, deleted=kind == _DEL_ADDRESS)
    if kind == _NEW_ROUTE and len(body) >= _ROUTE.size:
        return _read_route(body)
    if kind == _NEW_NEIGHBOUR and len(body) >= _NEIGHBOUR.size:
        return _read_neighbour(body)
    return None


def _read_route(body: bytes) -> Route | None:
    kind = _ROUTE.unpack_from(body)[7]
    found = dict(attributes(body, _ROUTE.size))
    destination = _address(found.get(_RTA_DST))
    if destination is None:
        return None
    via = found.get(_RTA_VIA)
    return Route(
        destination,
        _number(found.get(_RTA_OIF)),
        _address(found.get(_RTA_PREFSRC)),
        _address(found.get(_RTA_GATEWAY)) or (_address(via[2:]) if via else None),
        kind == _RTN_LOCAL,
        kind in (_RTN_UNICAST, _RTN_LOCAL),
    )


def _read_neighbour(body: bytes) -> Neighbour | None:
    _, index, _, _, _ = _NEIGHBOUR.unpack_from(body)
    found = dict(attributes(body, _NEIGHBOUR.size))
    address = _address(found.get(_NDA_DST))
    return None if address is None else Neighbour(index, address, found.get(_NDA_LLADDR, b""))


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", sys.byteorder)


def _text(raw: bytes | None) -> str:
    return (raw or b"").rstrip(b"\0").decode(errors="surrogateescape")


def _address(packed: bytes | None) -> IPAddress | None:
    return ip_address(packed) if packed is not None and len(packed) in (4, 16) else None


def _read_link(body: bytes, *, deleted: bool) -> Link | None:
    family, _, index, flags, _ = _LINK.unpack_from(body)
    if family != 0:  # a bridge tells about its ports in the same way
        return None
    found = dict(attributes(body, _LINK.size))
    wanted = _IFF_UP | _IFF_RUNNING | _IFF_LOWER_UP
    xdp = dict(attributes(found.get(_IFLA_XDP, b""), 0))
    namespace = found.get(_IFLA_LINK_NETNSID)
    return Link(
        index,
        _text(found.get(_IFLA_IFNAME)),
        found.get(_IFLA_ADDRESS, b""),
        carrier=not deleted and flags & wanted == wanted,
        loopback=bool(flags & _IFF_LOOPBACK),
        deleted=deleted,
        kind=_text(dict(attributes(found.get(_IFLA_LINKINFO, b""), 0)).get(_IFLA_INFO_KIND)),
        mtu=_number(found.get(_IFLA_MTU)),
        arp=not flags & _IFF_NOARP,
        peer=_number(found.get(_IFLA_LINK)),
        peer_namespace=None if namespace is None else _number(namespace),
        program=_number(xdp.get(_IFLA_XDP_PROG_ID)),
        generic=_number(xdp.get(_IFLA_XDP_ATTACHED)) == _XDP_GENERIC,
    )


def _read_address(body: bytes, *, deleted: bool) -> InterfaceAddress | None:
    _, prefix, flags, _, index = _ADDRESS.unpack_from(body)
    found = dict(attributes(body, _ADDRESS.size))
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or len(packed) not in (4, 16):
        return None
    label = _text(found.get(_IFA_LABEL))
    protocol = found.get(_IFA_PROTO, b"\0")[0]
    return InterfaceAddress(index, ip_address(packed), prefix, label, protocol, bool(flags & _IFA_F_SECONDARY), deleted)


def _address_body(address: InterfaceAddress) -> bytes:
    family = _AF_INET if address.address.version == 4 else _AF_INET6
    scope = _SCOPE_LINK if address.address.is_link_local else 0
    body = _ADDRESS.pack(family, address.prefix, 0, scope, address.index)
    packed = address.address.packed
    return body + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One request."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute with its padding."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(aligned(length) - length)


def attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each attribute behind ``offset``."""
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size or offset + length > len(body):
            return
        yield kind & 0x3FFF, body[offset + _ATTRIBUTE.size : offset + length]
        offset += aligned(length)


def aligned(length: int) -> int:
    """``length`` with its padding."""
    return (length + 3) & ~3
