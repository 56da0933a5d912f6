# SPDX-License-Identifier: Apache-2.0
"""Messages of the family ``netdev``: what is asked, what a kernel answers, and any bytes at all."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocols import netdev
from fairlead.protocols.netdev import Device, Family, XdpFeature
from fairlead.protocols.rtnetlink import Outcome, attribute, message

# Of a veth whose other end polls, as Linux 6.18 tells about it.
FEATURES = attribute(3, struct.pack("=Q", 0x67)) + attribute(5, bytes(8)) + attribute(6, bytes(8))
DEVICE = message(35, 0, 8, b"\1\1\0\0" + attribute(1, struct.pack("=I", 3)) + FEATURES)
FAMILY = message(16, 0, 7, b"\1\2\0\0" + attribute(2, b"netdev\0") + attribute(1, struct.pack("=H", 35)))
ABSENT = struct.pack("=IHHIIi", 20, 2, 0, 7, 0, -2)


def test_answers() -> None:
    (family,) = netdev.parse(FAMILY)
    assert family == Family(35)
    (device,) = netdev.parse(DEVICE)
    assert isinstance(device, Device)
    assert device.index == 3
    assert device.features & XdpFeature.BASIC
    assert device.features & XdpFeature.NDO_XMIT
    (bare,) = netdev.parse(DEVICE.replace(b"\x67\0", b"\x23\0"))
    assert isinstance(bare, Device)
    assert bare.features & XdpFeature.BASIC
    assert not bare.features & XdpFeature.NDO_XMIT
    assert list(netdev.parse(ABSENT + FAMILY)) == [Outcome(7, 2), Family(35)]


def test_questions() -> None:
    assert netdev.find_family(7)[4:16] == struct.pack("=HHII", 16, 5, 7, 0)
    assert netdev.find_family(7)[16:] == b"\3\1\0\0" + attribute(2, b"netdev\0")
    assert netdev.get_device(8, Family(35), 3)[4:] == (
        struct.pack("=HHII", 35, 5, 8, 0) + b"\1\1\0\0" + attribute(1, struct.pack("=I", 3))
    )


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(data: bytes) -> None:
    list(netdev.parse(data))


@given(st.data())
def test_a_damaged_answer_is_taken(data: st.DataObject) -> None:
    whole = bytearray(FAMILY + DEVICE + ABSENT)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    list(netdev.parse(bytes(whole)))
