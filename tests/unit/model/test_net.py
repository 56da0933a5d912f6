# SPDX-License-Identifier: Apache-2.0
"""Addresses are written, and read, as the standard library does it, but faster."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import example, given
from hypothesis import strategies as st

from fairlead.config.findings import Refused
from fairlead.config.forms import address
from fairlead.dataplane.xdp import abi
from fairlead.model.net import Endpoint, IPAddress, written

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
NUMBERS = st.integers(0, 255).map(str)
OCTETS = st.one_of(
    NUMBERS, st.sampled_from(("249", "256", "259", "260", "300", "1000", "00", "01", "", "1 ", "\u0661", "+1"))
)


@given(ADDRESSES)
def test_what_is_written_is_what_str_says(one: IPAddress) -> None:
    assert written(one) == str(one)


@given(ADDRESSES)
def test_what_is_packed_is_unpacked(one: IPAddress) -> None:
    raw = abi.packed(one)
    assert raw == (bytes(10) + b"\xff\xff" + one.packed if one.version == 4 else one.packed)
    assert abi.unpacked(raw) == one or (isinstance(one, IPv6Address) and one.ipv4_mapped is not None)


@example(["10", "0", "1"], "256", 3)
@given(st.lists(NUMBERS, min_size=2, max_size=4), OCTETS, st.integers(0, 4))
def test_what_is_read_is_what_the_library_reads(octets: list[str], odd: str, at: int) -> None:
    text = ".".join([*octets[:at], odd, *octets[at:]])
    try:
        wanted: IPAddress | None = ip_address(text)
    except ValueError:
        wanted = None
    try:
        found: IPAddress | None = address(text)
    except Refused:
        found = None
    assert found == wanted


def test_endpoints_that_are_equal_have_one_hash() -> None:
    one, other = (Endpoint(IPv4Address("10.0.0.1"), 80) for _ in range(2))
    assert len({one, other, Endpoint(IPv4Address("10.0.0.1"), 81), Endpoint(IPv4Address("10.0.0.2"), 80)}) == 3
