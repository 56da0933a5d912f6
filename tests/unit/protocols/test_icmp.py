# SPDX-License-Identifier: Apache-2.0
"""ICMP echo messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocols.icmp import echo_request, is_echo_reply, without_ipv4_header


def test_an_ipv4_request_carries_its_checksum() -> None:
    """Checked against the sum over the words by hand: 0800 + 1234 + 0001 + 6162 + 6300 = de97."""
    assert echo_request(4, 0x1234, b"abc") == bytes.fromhex("0800 2168 1234 0001 616263")


def test_a_checksum_whose_carry_carries_again() -> None:
    """0800 + f7fe + 0001 + ffff + 0001 = 1ffff; folded, 10000; folded again, 0001."""
    assert echo_request(4, 0xF7FE, b"\xff\xff\0\1") == bytes.fromhex("0800 fffe f7fe 0001 ffff 0001")


def test_an_ipv6_request_leaves_its_checksum_to_the_kernel() -> None:
    assert echo_request(6, 0x1234, b"abc") == bytes.fromhex("8000 0000 1234 0001 616263")


def test_replies_are_told_by_type_and_payload() -> None:
    reply = b"\0" + echo_request(4, 1, b"mine")[1:]
    assert is_echo_reply(4, reply, b"mine")
    assert not is_echo_reply(4, reply, b"other")
    assert not is_echo_reply(6, reply, b"mine")
    assert not is_echo_reply(4, echo_request(4, 1, b"mine"), b"mine")
    assert is_echo_reply(6, b"\x81" + reply[1:], b"mine")


@given(st.binary(max_size=80))
def test_anything_is_no_reply_and_no_exception(packet: bytes) -> None:
    assert not is_echo_reply(4, without_ipv4_header(packet), b"a payload that nobody knows")


def test_ip_options_are_skipped() -> None:
    assert without_ipv4_header(b"\x46" + b"\0" * 23 + b"rest") == b"rest"
