# SPDX-License-Identifier: Apache-2.0
"""Advertisements as bytes: what others send is read, what breaks a rule is named."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocols.checksum import internet_checksum
from fairlead.protocols.vrrp.packet import (
    GROUP_V4,
    GROUP_V6,
    Advertisement,
    ChecksumForm,
    InvalidAdvertisement,
    InvalidReason,
    decode,
    encode,
)

V4, V6 = IPv4Address("10.0.0.1"), IPv6Address("fe80::1")
VIP4, VIP6 = IPv4Address("198.51.100.10"), IPv6Address("2001:db8::10")
GOOD = Advertisement(3, 51, 100, 10, (VIP4,), ChecksumForm.RFC5798)


def test_version_3_on_the_wire() -> None:
    # Type 3/1, VRID 51, priority 100, 1 address, 10 cs; the sums were added by hand.
    assert encode(GOOD, V4, GROUP_V4).hex() == "31336401000a" + f"{_by_hand(True):04x}" + "c633640a"
    message_only = Advertisement(3, 51, 100, 10, (VIP4,), ChecksumForm.RFC9568)
    assert encode(message_only, V4, GROUP_V4).hex() == "31336401000a" + f"{_by_hand(False):04x}" + "c633640a"


def _by_hand(with_pseudo_header: bool) -> int:
    words = [0x3133, 0x6401, 0x000A, 0xC633, 0x640A]
    if with_pseudo_header:
        words += [0x0A00, 0x0001, 0xE000, 0x0012, 0x0070, 0x000C]
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def test_version_2_counts_seconds_and_carries_empty_authentication() -> None:
    data = encode(Advertisement(2, 51, 100, 100, (VIP4,)), V4, GROUP_V4)
    assert data[:6].hex() == "213364010001"
    assert len(data) == 8 + 4 + 8
    assert data[12:] == bytes(8)
    assert decode(data, V4, GROUP_V4, 255) == Advertisement(2, 51, 100, 100, (VIP4,))


@pytest.mark.parametrize("form", list(ChecksumForm))
def test_f09_both_checksum_forms_are_accepted_and_told_apart(form: ChecksumForm) -> None:
    sent = Advertisement(3, 51, 100, 10, (VIP4,), form)
    assert decode(encode(sent, V4, GROUP_V4), V4, GROUP_V4, 255) == sent


def test_over_ipv6_there_is_one_form() -> None:
    sent = Advertisement(3, 51, 100, 10, (IPv6Address("fe80::51"), VIP6))
    assert decode(encode(sent, V6, GROUP_V6), V6, GROUP_V6, 255) == sent


@pytest.mark.parametrize(
    ("data", "ttl", "reason"),
    [
        (encode(GOOD, V4, GROUP_V4), 254, InvalidReason.TTL),
        (b"", 255, InvalidReason.SHORT),
        (encode(GOOD, V4, GROUP_V4)[:7], 255, InvalidReason.SHORT),
        (encode(GOOD, V4, GROUP_V4)[:-1], 255, InvalidReason.LENGTH),
        (encode(GOOD, V4, GROUP_V4) + b"\0", 255, InvalidReason.LENGTH),
        (b"\x41" + encode(GOOD, V4, GROUP_V4)[1:], 255, InvalidReason.VERSION),
        (b"\x32" + encode(GOOD, V4, GROUP_V4)[1:], 255, InvalidReason.TYPE),
        (b"\x31\x00" + encode(GOOD, V4, GROUP_V4)[2:], 255, InvalidReason.VRID),
        (encode(GOOD, V4, GROUP_V4)[:3] + b"\x00" + encode(GOOD, V4, GROUP_V4)[4:], 255, InvalidReason.COUNT),
        (encode(GOOD, V4, GROUP_V4)[:3] + b"\xff" + encode(GOOD, V4, GROUP_V4)[4:], 255, InvalidReason.COUNT),
        (encode(GOOD, V4, GROUP_V4)[:-1] + b"\x0b", 255, InvalidReason.CHECKSUM),
        (encode(Advertisement(3, 51, 100, 0, (VIP4,)), V4, GROUP_V4), 255, InvalidReason.INTERVAL),
    ],
)
def test_what_breaks_a_rule_is_named(data: bytes, ttl: int, reason: InvalidReason) -> None:
    with pytest.raises(InvalidAdvertisement) as caught:
        decode(data, V4, GROUP_V4, ttl)
    assert caught.value.reason is reason


def test_simple_password_of_version_2_is_refused() -> None:
    body = bytes.fromhex("2133640101010000") + VIP4.packed + b"secret\0\0"
    checksum = internet_checksum(body)
    with pytest.raises(InvalidAdvertisement, match="authentication"):
        decode(body[:6] + checksum.to_bytes(2, "big") + body[8:], V4, GROUP_V4, 255)


def test_reserved_bits_are_ignored() -> None:
    data = encode(GOOD, V4, GROUP_V4)
    # RFC 9568 section 5.2.7: whoever sets them changes the checksum by as much.
    changed = bytearray(data)
    changed[4] |= 0xF0
    changed[6:8] = ((int.from_bytes(data[6:8], "big") - 0xF000) % 0xFFFF).to_bytes(2, "big")
    assert decode(bytes(changed), V4, GROUP_V4, 255).interval_cs == 10


@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, six: bool) -> None:
    source, group = (V6, GROUP_V6) if six else (V4, GROUP_V4)
    try:
        found = decode(data, source, group, 255)
    except InvalidAdvertisement:
        return
    assert encode(found, source, group)[:4] == data[:4]


@given(
    st.integers(1, 255),
    st.integers(0, 255),
    st.integers(1, 4095),
    st.lists(st.ip_addresses(v=4), min_size=1, max_size=20),
    st.sampled_from(ChecksumForm),
)
def test_what_is_sent_is_read_back(
    vrid: int, priority: int, interval_cs: int, addresses: list[IPv4Address], form: ChecksumForm
) -> None:
    sent = Advertisement(3, vrid, priority, interval_cs, tuple(addresses), form)
    found = decode(encode(sent, V4, GROUP_V4), V4, GROUP_V4, 255)
    # Where the pseudo-header sums to zero both forms are the same bytes.
    assert (found.vrid, found.priority, found.interval_cs, found.addresses) == (
        vrid,
        priority,
        interval_cs,
        sent.addresses,
    )
