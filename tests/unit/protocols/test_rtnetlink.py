# SPDX-License-Identifier: Apache-2.0
"""rtnetlink's messages, against bytes that a kernel sent and against any bytes at all."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocols import rtnetlink
from fairlead.protocols.rtnetlink import InterfaceAddress, Interrupted, Link, Outcome

V4 = InterfaceAddress(3, ip_address("192.0.2.10"), 24, "eth0:fl", 0xFA)
V6 = InterfaceAddress(3, ip_address("2001:db8::10"), 64, "", 0xFA)


@pytest.mark.parametrize("address", [V4, V6, replace(V4, prefix=32), replace(V6, address=ip_address("fe80::1"))])
def test_what_is_asked_reads_back(address: InterfaceAddress) -> None:
    (read,) = rtnetlink.parse(rtnetlink.add_address(7, address))
    assert read == address
    (read,) = rtnetlink.parse(rtnetlink.delete_address(7, address))
    assert read == replace(address, label="", protocol=0, deleted=True)


def test_a_broadcast_address_only_where_there_is_one() -> None:
    assert ip_address("192.0.2.255").packed in rtnetlink.add_address(1, V4)
    assert len(rtnetlink.add_address(1, replace(V4, prefix=31))) == len(rtnetlink.add_address(1, V4)) - 8


def test_outcomes() -> None:
    refused = struct.pack("=IHHIIi", 20, 2, 0, 9, 0, -17)
    done = struct.pack("=IHHII", 16, 3, 2, 10, 0)
    assert list(rtnetlink.parse(refused + done)) == [Outcome(9, 17), Outcome(10, 0)]


def link(flags: int, kind: int = 16, family: int = 0) -> bytes:
    attributes = struct.pack("=HH5s3x", 9, 3, b"eth0\0") + struct.pack("=HH6s2x", 10, 1, b"\x02\0\0\0\0\x01")
    body = struct.pack("=BxHiII", family, 1, 3, flags, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(("flags", "carrier"), [(0x10043, True), (0x1003, False), (0x10042, False), (0x10003, False)])
def test_a_link_has_carrier_when_it_is_up_and_running(flags: int, carrier: bool) -> None:
    (read,) = rtnetlink.parse(link(flags))
    assert read == Link(3, "eth0", b"\x02\0\0\0\0\x01", carrier)


def test_a_link_that_goes_and_a_port_of_a_bridge() -> None:
    (gone,) = rtnetlink.parse(link(0x10043, kind=17))
    assert isinstance(gone, Link)
    assert (gone.deleted, gone.carrier) == (True, False)
    assert list(rtnetlink.parse(link(0x10043, family=7))) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(data: bytes) -> None:
    list(rtnetlink.parse(data))


@given(st.data())
def test_a_damaged_message_is_taken(data: st.DataObject) -> None:
    whole = bytearray(rtnetlink.add_address(7, V6) + link(0x10043))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    list(rtnetlink.parse(bytes(whole)))


def test_an_interrupted_dump_says_so() -> None:
    whole = link(0x10043)
    assert [type(it) for it in rtnetlink.parse(whole[:6] + b"\x12\0" + whole[8:])] == [Interrupted, Link]
    assert [type(it) for it in rtnetlink.parse(whole[:6] + b"\x02\0" + whole[8:])] == [Link]


def test_a_link_tells_its_kind_its_peer_and_its_program() -> None:
    def nested(kind: int, *parts: bytes) -> bytes:
        return rtnetlink.attribute(kind | 0x8000, b"".join(parts))

    whole = rtnetlink.message(16, 0, 0, struct.pack("=BxHiII", 0, 1, 3, 0x100C3, 0) + b"".join((
        rtnetlink.attribute(3, b"tunl0\0"),
        rtnetlink.attribute(4, struct.pack("=I", 1400)),
        rtnetlink.attribute(5, struct.pack("=I", 7)),
        rtnetlink.attribute(37, struct.pack("=i", 2)),
        nested(18, rtnetlink.attribute(1, b"ipip\0")),
        nested(43, rtnetlink.attribute(2, b"\2"), rtnetlink.attribute(4, struct.pack("=I", 99))),
    )))  # fmt: skip
    (read,) = rtnetlink.parse(whole)
    assert read == Link(
        3, "tunl0", b"", True, kind="ipip", mtu=1400, arp=False, peer=7, peer_namespace=2, program=99, generic=True
    )


def test_a_link_of_another_namespace_is_asked_for_by_its_number() -> None:
    (read,) = rtnetlink.parse(rtnetlink.get_link(7, 5).replace(b"\x12\0", b"\x10\0", 1))
    assert isinstance(read, Link)
    assert read.index == 5
    assert struct.pack("=HHi", 8, 46, 3) in rtnetlink.get_link(7, 5, 3)
