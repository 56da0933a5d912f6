# SPDX-License-Identifier: Apache-2.0
"""Allow and deny lists: which addresses the ranges let in, against the plain meaning of the lists."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.model.net import AddressRange, Prefix
from fairlead.policy.access import allowed_ranges

MAPPED = 0xFFFF << 32


def number(address: str) -> int:
    parsed = ip_address(address)
    return int(parsed) + (MAPPED if parsed.version == 4 else 0)


def admits(ranges: tuple[AddressRange, ...] | None, address: str) -> bool:
    return ranges is None or any(part.low <= number(address) <= part.high for part in ranges)


def prefixes(*texts: str) -> tuple[Prefix, ...]:
    return tuple(ip_network(text) for text in texts)


def test_no_lists_mean_everybody() -> None:
    assert allowed_ranges((), ()) is None


def test_an_allow_list_that_holds_all_of_both_families_means_everybody() -> None:
    assert allowed_ranges(prefixes("0.0.0.0/0", "::/0"), ()) is None


def test_nobody_is_an_empty_list() -> None:
    assert allowed_ranges(prefixes("10.0.0.0/8"), prefixes("0.0.0.0/0")) == ()


@pytest.mark.parametrize(
    ("allow", "deny", "address", "admitted"),
    [
        (("10.0.0.0/8",), (), "10.255.255.255", True),
        (("10.0.0.0/8",), (), "11.0.0.0", False),
        (("10.0.0.0/8",), (), "2001:db8::1", False),
        ((), ("203.0.113.0/24",), "203.0.113.255", False),
        ((), ("203.0.113.0/24",), "203.0.114.0", True),
        ((), ("203.0.113.0/24",), "203.0.112.255", True),
        ((), ("203.0.113.0/24",), "2001:db8::1", True),
        (("10.0.0.0/8",), ("10.1.0.0/16",), "10.1.2.3", False),
        (("10.1.0.0/16",), ("10.0.0.0/8",), "10.1.2.3", False),
        ((), ("::/0",), "10.0.0.1", True),
        ((), ("::/0",), "2001:db8::1", False),
        (("::/0",), (), "10.0.0.1", False),
        (("::/0",), (), "::1", True),
        (("0.0.0.0/0",), (), "2001:db8::1", False),
        (("::ffff:10.0.0.0/104",), (), "10.2.3.4", True),
        ((), ("::fffe:0:0/95",), "10.0.0.1", True),
        ((), ("::fffe:0:0/95",), "::fffe:a00:1", False),
    ],
)
def test_who_is_admitted(allow: tuple[str, ...], deny: tuple[str, ...], address: str, admitted: bool) -> None:
    assert admits(allowed_ranges(prefixes(*allow), prefixes(*deny)), address) is admitted


def test_neighbours_become_one_range() -> None:
    ranges = allowed_ranges(prefixes("10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25"), ())
    assert ranges == (AddressRange(number("10.0.0.0"), number("10.0.1.255")),)


networks4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda it: IPv4Network(it, strict=False))
networks6 = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 95)).map(lambda it: IPv6Network(it, strict=False))
lists = st.lists(networks4 | networks6, max_size=6)


@given(lists, lists, st.data())
def test_ranges_mean_what_the_lists_mean(allow: list[Prefix], deny: list[Prefix], data: st.DataObject) -> None:
    ranges = allowed_ranges(allow, deny)
    edges = [ip_address(0), ip_address("255.255.255.255"), ip_address("::"), ip_address("8000::")]
    for prefix in (*allow, *deny):
        edges += [prefix.network_address, prefix.broadcast_address]
        edges += [prefix.network_address - 1] if int(prefix.network_address) else []
    address = data.draw(st.sampled_from(edges))
    if address.version == 6 and address.ipv4_mapped is not None:
        return
    meant = (not allow or any(address in it for it in allow)) and not any(address in it for it in deny)
    assert admits(ranges, str(address)) is meant


@given(lists, lists)
def test_ranges_are_sorted_disjoint_and_of_one_family(allow: list[Prefix], deny: list[Prefix]) -> None:
    ranges = allowed_ranges(allow, deny) or ()
    assert all(part.low <= part.high for part in ranges)
    assert all(left.high < right.low for left, right in pairwise(ranges))
    assert all((MAPPED <= part.low < MAPPED + 2**32) is (MAPPED <= part.high < MAPPED + 2**32) for part in ranges)
