# SPDX-License-Identifier: Apache-2.0
"""A call of the health service against scripted frames."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import MalformedPacket
from fairlead.protocols import hpack
from fairlead.protocols.grpc_health import PREFACE, HealthAnswer, HealthCall

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


def message(body: bytes) -> bytes:
    return struct.pack("!BI", 0, len(body)) + body


HELLO = frame(SETTINGS, payload=struct.pack("!HI", 4, 65535)) + frame(SETTINGS, ACK)
START = frame(HEADERS, END_HEADERS, 1, hpack.encode([(":status", "200"), ("content-type", "application/grpc")]))
SERVING = frame(DATA, 0, 1, message(b"\x08\x01"))
OK = frame(HEADERS, END_HEADERS | END_STREAM, 1, hpack.encode([("grpc-status", "0"), ("grpc-message", "")]))


def trailers(*fields: tuple[str, str]) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, hpack.encode(list(fields)))


OTHER_STREAM = (
    frame(DATA, 0, 3, b"another stream")
    + frame(HEADERS, END_HEADERS | END_STREAM, 3, hpack.encode([("grpc-status", "5")]))
    + frame(RST_STREAM, 0, 3, b"\0\0\0\0")
)


def call(service: str = "") -> HealthCall:
    return HealthCall("server.test:50051", service, scheme="http", user_agent="test")


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def test_the_request_on_the_wire() -> None:
    sent = call("web").data_to_send()
    assert sent.startswith(PREFACE)
    settings, headers, data = frames(sent.removeprefix(PREFACE))
    assert settings == (SETTINGS, 0, 0, bytes.fromhex("000100000000 000200000000"))
    assert headers[:3] == (HEADERS, END_HEADERS, 1)
    fields = hpack.decode(headers[3])
    assert fields[":path"] == "/grpc.health.v1.Health/Check"
    assert fields[":authority"] == "server.test:50051"
    assert (fields["te"], fields["content-type"]) == ("trailers", "application/grpc")
    assert data == (DATA, END_STREAM, 1, message(b"\x0a\x03web"))


def test_no_service_is_an_empty_request() -> None:
    assert frames(call().data_to_send().removeprefix(PREFACE))[2][3] == message(b"")


def test_a_long_service_has_a_long_length() -> None:
    assert frames(call("x" * 300).data_to_send().removeprefix(PREFACE))[2][3] == message(b"\x0a\xac\x02" + b"x" * 300)


@pytest.mark.parametrize("size", [1, 7, 10000])
def test_serving_in_pieces_of_any_size(size: int) -> None:
    asked = call()
    answer = HELLO + START + SERVING + OK
    for at in range(0, len(answer), size):
        assert asked.answer is None
        asked.receive_data(answer[at : at + size])
    assert asked.answer == HealthAnswer(True, "SERVING")


def test_settings_and_pings_are_answered() -> None:
    asked = call()
    asked.data_to_send()
    asked.receive_data(HELLO + frame(PING, payload=b"12345678") + frame(PING, ACK, payload=b"12345678"))
    assert frames(asked.data_to_send()) == [(SETTINGS, ACK, 0, b""), (PING, ACK, 0, b"12345678")]
    assert asked.data_to_send() == b""


@pytest.mark.parametrize(
    ("rest", "detail"),
    [
        (START + frame(DATA, 0, 1, message(b"\x08\x02")) + OK, "NOT_SERVING"),
        (START + frame(DATA, 0, 1, message(b"\x08\x03")) + OK, "SERVICE_UNKNOWN"),
        (START + frame(DATA, 0, 1, message(b"\x08\x09")) + OK, "9"),
        (START + frame(DATA, 0, 1, message(b"")) + OK, "UNKNOWN"),
        (
            trailers((":status", "200"), ("grpc-status", "12"), ("grpc-message", "no%20such")),
            "gRPC status 12 UNIMPLEMENTED: no such",
        ),
        (trailers((":status", "200"), ("grpc-status", "5")), "gRPC status 5 NOT_FOUND"),
        (trailers((":status", "200"), ("grpc-status", "9" * 5000)), f"gRPC status {'9' * 5000}"),
        (START + SERVING + trailers(("grpc-status", "14")), "gRPC status 14 UNAVAILABLE"),
        (trailers((":status", "503")), "HTTP status 503"),
        (frame(RST_STREAM, 0, 1, b"\0\0\0\x07"), "the call was reset, error code 7"),
        (frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x0bcalm down"), "the server went away: calm down"),
    ],
)
def test_other_answers_are_not_serving(rest: bytes, detail: str) -> None:
    asked = call()
    asked.receive_data(HELLO + rest)
    assert asked.answer == HealthAnswer(False, detail)


@pytest.mark.parametrize(
    "rest",
    [
        START + frame(DATA, PADDED, 1, b"\x03" + message(b"\x08\x01") + b"\0\0\0") + OK,
        frame(HEADERS, 0, 1, START[9:12]) + frame(CONTINUATION, END_HEADERS, 1, START[12:]) + SERVING + OK,
        frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"\0\0\0\0\x10" + START[9:]) + SERVING + OK,
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\xff\xff") + START + frame(0xBE, 0xFF, 1, b"grease") + SERVING + OK,
        frame(GOAWAY, 0, 0, b"\0\0\0\1\0\0\0\0") + START + SERVING + OK,
        START + frame(DATA, 0, 1, message(b"\x08\x01")[:3]) + frame(DATA, 0, 1, message(b"\x08\x01")[3:]) + OK,
        OTHER_STREAM + START + SERVING + OK,
        START + frame(DATA, 0, 0x80000001, message(b"\x08\x01")) + OK,
    ],
    ids=[
        "padded",
        "continued",
        "priority",
        "unknown frames",
        "gentle goaway",
        "split message",
        "other stream",
        "reserved bit",
    ],
)
def test_whatever_http_2_allows_does_not_disturb(rest: bytes) -> None:
    asked = call()
    asked.receive_data(HELLO + rest)
    assert asked.answer == HealthAnswer(True, "SERVING")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not HTTP/2"),
        (START, "no SETTINGS at first"),
        (HELLO + b"\xff\xff\xff" + b"\0" * 6, "longer than HTTP/2 allows"),
        (HELLO + frame(PUSH, 0, 1, b"\0\0\0\2"), "a push"),
        (HELLO + frame(HEADERS, 0, 1, b"") + frame(PING, payload=b"12345678"), "interrupted"),
        (HELLO + frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"\0" * 16384) * 3, "headers without end"),
        (HELLO + frame(DATA, 0, 1, b"x" * 4097), "too long"),
        (HELLO + START + frame(DATA, 0, 1, b"\x01" + message(b"\x08\x01")[1:]) + OK, "not one uncompressed"),
        (HELLO + START + frame(DATA, 0, 1, message(b"\x08\x01") + b"x") + OK, "not one uncompressed"),
        (HELLO + START + frame(DATA, 0, 1, message(b"\x12\x01")) + OK, "not a HealthCheckResponse"),
        (HELLO + START + frame(DATA, 0, 1, message(b"\x08")) + OK, "not a HealthCheckResponse"),
        (HELLO + START + OK, "not one uncompressed"),
        (HELLO + START + frame(DATA, END_STREAM, 1, b""), "without grpc-status"),
        (HELLO + frame(DATA, PADDED, 1, b"\x05abc"), "nothing but padding"),
    ],
)
def test_what_breaks_the_protocol_is_malformed(data: bytes, why: str) -> None:
    with pytest.raises(MalformedPacket, match=why):
        call().receive_data(data)


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 0x0D, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 1, 1, 3, 0x80000001]),
    st.binary(max_size=40),
)


@given(st.lists(FRAMES | st.sampled_from([START, SERVING, OK]) | st.binary(max_size=20), max_size=8))
def test_anything_is_an_answer_or_malformed_or_unfinished(pieces: list[bytes]) -> None:
    asked = call()
    try:
        for piece in [HELLO, *pieces]:
            asked.receive_data(piece)
    except MalformedPacket:
        return
    assert asked.answer is None or isinstance(asked.answer, HealthAnswer)
