# SPDX-License-Identifier: Apache-2.0
"""Who answers for a VIP, where nobody can be asked."""

from __future__ import annotations

from ipaddress import ip_address

from fairlead.announce.witness import who_answers
from fairlead.model.vip import STATIC, Vip

ADDRESS = ip_address("192.0.2.10")


def test_no_vip_is_no_question() -> None:
    assert who_answers([]) == {}


def test_where_nobody_can_be_asked_nothing_is_known() -> None:
    for interface in ("no-such-one", "lo"):
        assert who_answers([Vip(ADDRESS, 32, interface, STATIC)]) == {ADDRESS: None}
