# SPDX-License-Identifier: Apache-2.0
"""Which VIP answers for a server, where services share it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.replies import Claim, Replies, ReplyKey, claims

SERVER = abi.packed(ip_address("10.0.0.1"))
TCP = 6
Claims = Iterable[tuple[ReplyKey, Claim]]


def claimed(service: int, vip: str, first: int, last: int, port: int) -> Claims:
    """What a service with this one server (0: at whatever port the client used) claims."""
    return claims(service, [(service, SERVER, port)], [(ip_address(vip), first, last)], TCP)


WIDE = claimed(1, "192.0.2.1", 1000, 2000, 0)
INSIDE, OUTSIDE = claimed(2, "192.0.2.2", 80, 80, 1500), claimed(2, "192.0.2.2", 80, 80, 3000)


@pytest.mark.parametrize("first", [WIDE, INSIDE], ids=["wide first", "narrow first"])
def test_a_port_that_a_service_of_a_range_uses_too_is_ambiguous(first: Claims) -> None:
    replies = Replies()
    for some in (first, WIDE if first is INSIDE else INSIDE):
        replies.change((), some, 0.0)
    assert replies.entries[ReplyKey(SERVER, 1500, TCP)].flags & abi.REPLY_AMBIGUOUS
    assert replies.is_ambiguous(2)


def test_a_port_outside_of_that_range_is_not() -> None:
    replies = Replies()
    replies.change((), WIDE, 0.0)
    replies.change((), OUTSIDE, 0.0)
    assert not replies.entries[ReplyKey(SERVER, 3000, TCP)].flags


def test_a_service_of_the_other_family_claims_nothing() -> None:
    assert not claimed(1, "2001:db8::1", 80, 80, 80)
