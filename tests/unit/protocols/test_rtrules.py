# SPDX-License-Identifier: Apache-2.0
"""Routing rules as bytes: what is written is read back, whatever else comes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocols import rtrules
from fairlead.protocols.rtnetlink import Outcome
from fairlead.protocols.rtrules import Rule

RULES = [Rule(ip_address("192.0.2.1"), 6, 80, 80), Rule(ip_address("2001:db8::1"), 17, 8000, 8099)]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_read_back(rule: Rule) -> None:
    assert list(rtrules.parse(rtrules.add_rule(1, rule))) == [rule]
    assert list(rtrules.parse(rtrules.add_rule(1, rule) + rtrules.add_rule(2, RULES[0]))) == [rule, RULES[0]]


@pytest.mark.parametrize("kind", [21, 15, 22, 23, 2])
def test_a_rule_of_somebody_else_is_not_ours(kind: int) -> None:
    data = bytearray(rtrules.add_rule(1, RULES[0]))
    at = 28
    while data[at + 2] != kind:
        at += data[at] + 3 & ~3
    data[at + 2] = 99
    assert list(rtrules.parse(bytes(data))) == []


def test_outcomes() -> None:
    done = (20).to_bytes(4, "little") + b"\x03\0\0\0" + (7).to_bytes(4, "little") + bytes(4) + bytes(4)
    assert list(rtrules.parse(done)) == [Outcome(7, 0)]


@given(st.binary(max_size=200), st.integers(0, 120), st.binary(max_size=4))
def test_any_bytes_are_read_without_harm(data: bytes, at: int, change: bytes) -> None:
    list(rtrules.parse(data))
    rule = rtrules.add_rule(1, RULES[1])
    list(rtrules.parse(rule[:at] + change + rule[at + len(change) :]))
