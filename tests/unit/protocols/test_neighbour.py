# SPDX-License-Identifier: Apache-2.0
"""Frames that tell and ask who owns an address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocols.checksum import internet_checksum, pseudo_header
from fairlead.protocols.neighbour import (
    ArpOperation,
    arp_probe,
    gratuitous_arp,
    read_advertisement,
    read_arp,
    solicitation,
    unsolicited_advertisement,
)

MAC = bytes.fromhex("0200000000aa")
VIP4, VIP6 = IPv4Address("198.51.100.10"), IPv6Address("2001:db8::10")


def test_gratuitous_arp_comes_in_both_forms() -> None:
    request = gratuitous_arp(VIP4, MAC, ArpOperation.REQUEST)
    assert request.hex() == (
        "ffffffffffff" "0200000000aa" "0806" "0001" "0800" "06" "04" "0001"
        "0200000000aa" "c633640a" "000000000000" "c633640a"
    )  # fmt: skip
    reply = read_arp(gratuitous_arp(VIP4, MAC, ArpOperation.REPLY))
    assert reply is not None
    assert (reply.operation, reply.sender, reply.target, reply.target_mac) == (2, VIP4, VIP4, MAC)


def test_a_probe_claims_nothing() -> None:
    probe = read_arp(arp_probe(VIP4, MAC))
    assert probe is not None
    assert (probe.sender, probe.target, probe.operation) == (IPv4Address(0), VIP4, ArpOperation.REQUEST)


def test_unsolicited_advertisement_overrides_and_goes_to_all_nodes() -> None:
    frame = unsolicited_advertisement(VIP6, MAC, router=True)
    assert frame[:6].hex() == "333300000001"
    assert frame[21] == 255, "hop limit"
    assert frame[58:62].hex() == "a0000000", "router and override, not solicited"
    assert read_advertisement(frame) == (VIP6, MAC)
    covered = pseudo_header(VIP6, IPv6Address("ff02::1"), 58, 32) + frame[54:]
    assert internet_checksum(covered) == 0


def test_a_solicitation_goes_to_the_solicited_node_group() -> None:
    frame = solicitation(VIP6, MAC)
    assert frame[:6].hex() == "3333ff000010"
    assert IPv6Address(frame[38:54]) == IPv6Address("ff02::1:ff00:10")
    assert IPv6Address(frame[22:38]) == IPv6Address(0)
    assert read_advertisement(frame) is None


@given(st.binary(max_size=100))
def test_any_frame_is_read_or_none(frame: bytes) -> None:
    read_arp(frame)
    read_advertisement(frame)
