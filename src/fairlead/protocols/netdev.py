# SPDX-License-Identifier: Apache-2.0
"""Messages of generic netlink's family ``netdev`` (Linux 6.3 and later), as bytes: what XDP can do on an interface."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from fairlead.protocols.rtnetlink import Outcome, attribute, attributes, datagram, message

FAMILY = "netdev"
_ERROR, _CONTROL = 2, 16  # NLMSG_ERROR, GENL_ID_CTRL
_REQUEST, _ACK = 0x1, 0x4
_GENERIC = struct.Struct("=BBxx")  # command, version
_GET_FAMILY = 3
_FAMILY_ID, _FAMILY_NAME = 1, 2
_DEVICE_GET = 1
_IFINDEX, _XDP_FEATURES = 1, 3


class XdpFeature(IntFlag):
    """``enum netdev_xdp_act`` of linux/netdev.h, as far as it is used here."""

    BASIC = 1  # programs in the driver: native mode
    NDO_XMIT = 4  # takes frames that others redirect to it


@dataclass(frozen=True, slots=True)
class Family:
    """The number by which messages of a family go."""

    number: int


@dataclass(frozen=True, slots=True)
class Device:
    """What XDP can do with the interface of this index."""

    index: int
    features: XdpFeature


def find_family(sequence: int) -> bytes:
    """Ask for the number of ``FAMILY``; answered by a Family, or by an Outcome with ENOENT."""
    body = _GENERIC.pack(_GET_FAMILY, 1) + attribute(_FAMILY_NAME, FAMILY.encode() + b"\0")
    return message(_CONTROL, _REQUEST | _ACK, sequence, body)


def get_device(sequence: int, family: Family, index: int) -> bytes:
    """Ask for one interface; answered by a Device."""
    body = _GENERIC.pack(_DEVICE_GET, 1) + attribute(_IFINDEX, struct.pack("=I", index))
    return message(family.number, _REQUEST | _ACK, sequence, body)


def parse(data: bytes) -> Iterator[Family | Device | Outcome]:
    """What one datagram from the kernel says; what it does not know it passes over."""
    for kind, _, sequence, body in datagram(data):
        if kind == _ERROR and len(body) >= 4:
            yield Outcome(sequence, -int(struct.unpack_from("=i", body)[0]))
        elif kind != _ERROR and len(body) >= _GENERIC.size:
            found = dict(attributes(body, _GENERIC.size))
            if kind == _CONTROL and len(found.get(_FAMILY_ID, b"")) == 2:
                yield Family(*struct.unpack("=H", found[_FAMILY_ID]))
            elif kind != _CONTROL and len(found.get(_XDP_FEATURES, b"")) == 8 and len(found.get(_IFINDEX, b"")) == 4:
                (index,) = struct.unpack("=I", found[_IFINDEX])
                yield Device(index, XdpFeature(struct.unpack("=Q", found[_XDP_FEATURES])[0]))
