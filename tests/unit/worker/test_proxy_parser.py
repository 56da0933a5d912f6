# SPDX-License-Identifier: Apache-2.0
"""The worker's parser of PROXY headers says what the reference says, whatever the bytes."""

from __future__ import annotations

import ipaddress
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.model.net import Endpoint
from fairlead.protocols.proxy_header import (
    AUTHORITY,
    CRC32C,
    LENGTH_MAX,
    SIGNATURE_2,
    UNIQUE_ID,
    Header,
    Kind,
    Malformed,
    decode,
    version_1,
    version_2,
    version_2_local,
)
from support.models import endpoint
from support.worker import SANITIZERS, SOURCES
from support.worker_abi import endpoint as read_address

ANSWER = struct.Struct("=IQI20s20sI512s")
PASSED_MAX = 512
V4 = (endpoint("192.0.2.1:5000"), endpoint("192.0.2.2:80"))
V6 = (endpoint("[2001:db8::1]:5000"), endpoint("[2001:db8::2]:80"))


class Parser:
    """tests/native/parse_proxy.c with sanitizers."""

    def __init__(self, directory: Path) -> None:
        program = directory / "parse-proxy"
        source = Path(__file__).resolve().parents[2] / "native" / "parse_proxy.c"
        subprocess.run(
            ["cc", "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
             f"-I{SOURCES}", "-o", program, source, SOURCES / "proxy.c", SOURCES / "address.c"],
            check=True,
        )  # fmt: skip
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(SANITIZERS))

    def parse(self, data: bytes, *, datagram: bool = False) -> Header | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(struct.pack("=BI", datagram, len(data)) + data)
        self.process.stdin.flush()
        answer = self.process.stdout.read(ANSWER.size)
        assert len(answer) == ANSWER.size, "the parser ended: see the sanitizer's report"
        verdict, length, kind, source, destination, passed, tlvs = ANSWER.unpack(answer)
        if verdict == 2:
            raise Malformed
        if verdict == 1:
            return None
        if Kind(kind) is not Kind.ADDRESSES:
            return Header(length, Kind(kind), tlvs=_tlvs(tlvs[:passed]))
        return Header(length, Kind(kind), _endpoint(source), _endpoint(destination), _tlvs(tlvs[:passed]))


def _endpoint(raw: bytes) -> Endpoint:
    host, port = read_address(raw)
    return Endpoint(ipaddress.ip_address(host), port)


def _tlvs(data: bytes) -> tuple[tuple[int, bytes], ...]:
    found = []
    while data:
        kind, size = struct.unpack_from("!BH", data)
        found.append((kind, data[3 : 3 + size]))
        data = data[3 + size :]
    return tuple(found)


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parser]:
    parser = Parser(tmp_path_factory.mktemp("parser"))
    yield parser
    assert parser.process.stdin is not None
    assert parser.process.stdout is not None
    parser.process.stdin.close()
    assert parser.process.wait(10) == 0
    parser.process.stdout.close()


def passed_on(header: Header) -> Header:
    """What the worker keeps of the TLVs."""
    kept: list[tuple[int, bytes]] = []
    for kind, value in header.tlvs:
        room = PASSED_MAX - sum(3 + len(it) for _, it in kept)
        if kind in (AUTHORITY, UNIQUE_ID) and 3 + len(value) <= room:
            kept.append((kind, value))
    return Header(header.length, header.kind, header.source, header.destination, tuple(kept))


def compare(parser: Parser, data: bytes) -> None:
    for datagram in (False, True):
        try:
            expected = decode(data, datagram=datagram)
        except Malformed:
            with pytest.raises(Malformed):
                parser.parse(data, datagram=datagram)
        else:
            assert parser.parse(data, datagram=datagram) == (expected and passed_on(expected))


ports = st.integers(0, 65535)
tlvs = st.lists(
    st.tuples(st.sampled_from([0, AUTHORITY, CRC32C, UNIQUE_ID, 4, 0x20, 0xEE]), st.binary(max_size=140)), max_size=6
)


def _raw(family: int, block: bytes) -> bytes:
    return SIGNATURE_2 + bytes([0x21, family]) + struct.pack("!H", len(block)) + block


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Well-formed headers and what is one step from them."""
    family = st.ip_addresses(v=4) if draw(st.booleans()) else st.ip_addresses(v=6)
    one, other = (Endpoint(draw(family), draw(ports)) for _ in range(2))
    data = draw(
        st.sampled_from([
            version_1(one, other),
            version_2_local(),
            version_2(one, other, tuple(draw(tlvs)), datagram=draw(st.booleans()), checksum=draw(st.booleans())),
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN whatever 1 2 3\r\n",
            _raw(draw(st.integers(0, 255)), draw(st.binary(min_size=216, max_size=216))),
        ])
    )  # fmt: skip
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]
    return data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=8)) if draw(st.booleans()) else data


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=headers())
def test_f49_both_parsers_agree_near_real_headers(parser: Parser, data: bytes) -> None:
    compare(parser, data)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE_2, SIGNATURE_2 + b"\x21\x11"]), rest=st.binary()
)
def test_f49_both_parsers_agree_on_any_bytes(parser: Parser, start: bytes, rest: bytes) -> None:
    compare(parser, start + rest)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("TCP46UNKO .:0123456789af\r\n", max_size=120))
def test_f49_both_parsers_agree_on_lines(parser: Parser, text: str) -> None:
    compare(parser, b"PROXY " + text.encode())


@pytest.mark.parametrize("ends", [V4, V6])
@pytest.mark.parametrize("datagram", [False, True])
def test_every_prefix_of_a_header_is_incomplete(
    parser: Parser, ends: tuple[Endpoint, Endpoint], *, datagram: bool
) -> None:
    extras = ((AUTHORITY, b"example.org"), (0xEE, b"x" * 300), (UNIQUE_ID, b"u" * 128))
    whole = version_2(*ends, extras, datagram=datagram, checksum=True)
    assert parser.parse(whole, datagram=datagram) == Header(
        len(whole), Kind.ADDRESSES, *ends, ((AUTHORITY, b"example.org"), (UNIQUE_ID, b"u" * 128))
    )
    line = version_1(*ends)
    assert parser.parse(line) == Header(len(line), Kind.ADDRESSES, *ends)
    for end in range(len(whole)):
        assert parser.parse(whole[:end]) is None
        compare(parser, whole[:end])
    for end in range(len(line)):
        assert parser.parse(line[:end]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 05000 80\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2  5000 80\r\n",
        b"PROXY TCP4 2001:db8::1 192.0.2.2 5000 80\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\n" + b" " * 100,
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN" + b"x" * 100,
        SIGNATURE_2 + bytes([0x31, 0x11, 0, 12]) + bytes(12),
        SIGNATURE_2 + bytes([0x22, 0x11, 0, 12]) + bytes(12),
        SIGNATURE_2 + bytes([0x21, 0x41, 0, 12]) + bytes(12),
        SIGNATURE_2 + bytes([0x21, 0x13, 0, 12]) + bytes(12),
        SIGNATURE_2 + bytes([0x21, 0x11, 0, 11]) + bytes(11),
        SIGNATURE_2 + bytes([0x21, 0x11]) + struct.pack("!H", LENGTH_MAX - 15),
        version_2(*V4, ((UNIQUE_ID, b"u" * 129),)),
        version_2(*V4, ((CRC32C, b"none"),)),
        version_2(*V4, ((CRC32C, b"long!"),)),
        version_2(*V4, ((0xEE, b""),))[:14] + b"\0\x0e" + version_2(*V4)[16:] + b"\xee\0",
    ],
)
def test_what_breaks_the_protocol(parser: Parser, data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)
    with pytest.raises(Malformed):
        parser.parse(data)


def test_the_largest_header_is_accepted(parser: Parser) -> None:
    whole = version_2(*V4, ((0xEE, bytes(LENGTH_MAX - 28 - 3)),))
    assert len(whole) == LENGTH_MAX
    assert parser.parse(whole) == Header(LENGTH_MAX, Kind.ADDRESSES, *V4)
