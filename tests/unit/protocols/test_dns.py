# SPDX-License-Identifier: Apache-2.0
"""The DNS codec: RFC 1035's own shapes, and anything at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import MalformedPacket
from fairlead.protocols.dns import DnsAnswer, decode_answer, encode_name, encode_query

QUERY = encode_query(0x1234, "www.Example.org", "A")
QUESTION = QUERY[12:]
POINTER_RECORD = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + b"\xc0\x00\x02\x01"


def response(
    flags: int = 0x8180, questions: int = 1, answers: int = 1, rest: bytes = QUESTION + POINTER_RECORD
) -> bytes:
    return struct.pack("!6H", 0x1234, flags, questions, answers, 0, 0) + rest


def test_a_query_on_the_wire() -> None:
    assert bytes.fromhex("1234 0100 0001 0000 0000 0000 03777777 074578616d706c65 036f7267 00 0001 0001") == QUERY


@pytest.mark.parametrize(
    ("name", "wire"),
    [(".", b"\0"), ("", b"\0"), ("org", b"\3org\0"), ("org.", b"\3org\0"), ("a" * 63, b"\x3f" + b"a" * 63 + b"\0")],
)
def test_names(name: str, wire: bytes) -> None:
    assert encode_name(name) == wire


@pytest.mark.parametrize("name", ["a" * 64, "a..b", ".org", "\u00e4.org", ".".join(["abcdefg"] * 32)])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"name|ascii"):
        encode_name(name)


def test_an_unknown_record_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'BOGUS' is no record type"):
        encode_query(1, "org", "BOGUS")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (response(), DnsAnswer(0x1234, 0, 1)),
        (response(rest=QUESTION.lower() + POINTER_RECORD), DnsAnswer(0x1234, 0, 1)),
        (response(answers=2, rest=QUESTION + POINTER_RECORD + QUESTION + b"\0\0\0\0\0\0"), DnsAnswer(0x1234, 0, 2)),
        (response(0x8183, answers=0, rest=QUESTION), DnsAnswer(0x1234, 3, 0)),
        (response(0x8185, questions=0, answers=0, rest=b""), DnsAnswer(0x1234, 5, 0)),
        (response(0x8380, answers=9, rest=QUESTION), DnsAnswer(0x1234, 0, 9)),
    ],
    ids=["pointer", "case", "two", "nxdomain", "refused without question", "truncated"],
)
def test_good_answers(data: bytes, answer: DnsAnswer) -> None:
    assert decode_answer(data, QUERY) == answer


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x12\x34", "shorter than a DNS header"),
        (QUERY, "a query instead of a response"),
        (response(rest=b"\3xyz" + QUESTION[4:] + POINTER_RECORD), "a response to another question"),
        (response(questions=0, answers=0, rest=b""), "a response to another question"),
        (response(questions=2), "a response to another question"),
        (response(answers=2), "a name is cut off"),
        (response(rest=QUESTION + POINTER_RECORD[:-1]), "a record is cut off"),
        (response(rest=QUESTION + POINTER_RECORD[:5]), "a record is cut off"),
        (response(rest=QUESTION + b"\x3fabc"), "a name is cut off"),
        (response(rest=QUESTION + b"\x80" + POINTER_RECORD), "a label of an unknown kind"),
    ],
)
def test_bad_answers(data: bytes, why: str) -> None:
    with pytest.raises(MalformedPacket, match=why):
        decode_answer(data, QUERY)


@given(st.binary(max_size=100) | st.binary(max_size=60).map(lambda tail: response(answers=3, rest=QUESTION + tail)))
def test_anything_is_an_answer_or_malformed(data: bytes) -> None:
    try:
        answer = decode_answer(data, QUERY)
    except MalformedPacket:
        return
    assert 0 <= answer.rcode < 16
