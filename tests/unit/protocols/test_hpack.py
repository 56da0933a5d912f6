# SPDX-License-Identifier: Apache-2.0
"""HPACK: the examples of RFC 7541 appendix C, and anything at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import MalformedPacket
from fairlead.protocols.hpack import decode, encode


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        ("www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
        ("no-cache", "a8eb10649cbf"),
        ("custom-value", "25a849e95bb8e8b4bf"),
        ("302", "6402"),
        ("?", "ff3f"),  # appendix B: one code of each length from 10 bits on
        ("'", "ff5f"),
        ("#", "ffaf"),
        ("~", "ffef"),
        ("}", "fff7"),
        ("{", "fffd"),
        ("private", "aec3771a4b"),
        ("Mon, 21 Oct 2013 20:13:21 GMT", "d07abe941054d444a8200595040b8166e082a62d1bff"),
        ("https://www.example.com", "9d29ad171863c78f0b97c8e9ae82ae43d3"),
        (
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ),
    ],
)
def test_the_examples_of_compressed_strings(value: str, wire: str) -> None:
    raw = bytes.fromhex(wire)
    assert decode(b"\0\1x" + bytes([0x80 | len(raw)]) + raw) == {"x": value}


@pytest.mark.parametrize(
    ("wire", "fields"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", {"custom-key": "custom-header"}),  # C.2.1
        ("040c2f73616d706c652f70617468", {}),  # C.2.2: the name is in the table, and of no interest
        ("100870617373776f726406736563726574", {"password": "secret"}),  # C.2.3
        ("88", {":status": "200"}),
        ("8e", {":status": "500"}),
        ("82", {}),
        ("08033539 39", {":status": "599"}),
        ("203fe11f88", {":status": "200"}),  # table sizes 0 and 4096 first
        ("be88", {":status": "200"}),  # an entry of the dynamic table, which we do not keep
        ("0082ffff0161", {}),  # a compressed name that is not ASCII
    ],
)
def test_representations(wire: str, fields: dict[str, str]) -> None:
    assert decode(bytes.fromhex(wire.replace(" ", ""))) == fields


@pytest.mark.parametrize(
    "wire", ["00", "0001", "000161", "00016103", "0001610361", "7f", "ff", "ffffffffffff", "000182"]
)
def test_what_is_cut_off_is_malformed(wire: str) -> None:
    with pytest.raises(MalformedPacket, match="cut off"):
        decode(bytes.fromhex(wire))


@given(st.dictionaries(st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1), st.text(st.characters(codec="ascii"))))
def test_what_is_encoded_is_decoded(fields: dict[str, str]) -> None:
    assert decode(encode(list(fields.items()))) == fields


def test_long_values() -> None:
    for length in (126, 127, 128, 254, 255, 256, 20000):
        assert decode(encode([("x", "y" * length)])) == {"x": "y" * length}


@given(st.binary(max_size=100))
def test_anything_is_fields_or_malformed(block: bytes) -> None:
    try:
        fields = decode(block)
    except MalformedPacket:
        return
    assert all(isinstance(value, str) for value in fields.values())
