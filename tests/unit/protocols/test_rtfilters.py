# SPDX-License-Identifier: Apache-2.0
"""Filters of tc as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocols import rtfilters
from fairlead.protocols.rtfilters import Filter
from fairlead.protocols.rtnetlink import Outcome, attribute, message


def told(index: int, handle: int, priority: int, kind: str, options: bytes | None) -> bytes:
    """A message of the kernel's about a filter, as ``tc filter show`` gets it (linux/rtnetlink.h, struct tcmsg)."""
    body = struct.pack("=BxxxiIII", 0, index, handle, 0xFFFFFFF3, priority << 16 | 0x0300)
    body += attribute(1, kind.encode() + b"\0") + attribute(11, bytes(4))
    return message(44, 2, 5, body + (attribute(2, options) if options is not None else b""))


PROGRAM = attribute(7, b"fairlead_out:[17]\0") + attribute(8, bytes(4)) + attribute(11, struct.pack("=I", 17))


def test_filters_are_read() -> None:
    data = told(3, 0, 9, "bpf", None) + told(3, 0x464C01, 9, "bpf", PROGRAM) + told(3, 1, 10, "flower", b"\1")
    assert list(rtfilters.parse(data)) == [
        Filter(3, "bpf", 0, 9, ""),
        Filter(3, "bpf", 0x464C01, 9, "fairlead_out:[17]"),
        Filter(3, "flower", 1, 10, ""),
    ]


@pytest.mark.parametrize(("egress", "parent"), [(True, 0xFFFFFFF3), (False, 0xFFFFFFF2)])
def test_all_of_one_direction_are_asked_for(egress: bool, parent: int) -> None:
    asked = rtfilters.dump_filters(7, 3, egress=egress)
    assert struct.unpack_from("=IHHII", asked) == (len(asked), 46, 0x301, 7, 0)
    assert struct.unpack_from("=BxxxiIII", asked, 16) == (0, 3, 0, parent, 0)


def test_the_end_is_told() -> None:
    assert list(rtfilters.parse(message(3, 2, 7, bytes(4)))) == [Outcome(7, 0)]
    assert list(rtfilters.parse(message(2, 0, 7, struct.pack("=i", -19)))) == [Outcome(7, 19)]


@given(st.binary(max_size=200), st.integers(0, 120), st.binary(max_size=4))
def test_nothing_that_comes_is_too_strange(junk: bytes, at: int, change: bytes) -> None:
    good = told(3, 0x464C01, 9, "bpf", PROGRAM)
    for data in (junk, good[:at] + change + good[at + len(change) :], good[:at]):
        list(rtfilters.parse(data))
