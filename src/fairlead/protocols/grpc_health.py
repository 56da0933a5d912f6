# SPDX-License-Identifier: Apache-2.0
"""One call of ``grpc.health.v1.Health/Check``: gRPC over HTTP/2 (RFC 9113), as one side of one stream.

Feed ``receive_data`` what the server sends, send what ``data_to_send`` returns, until ``answer`` is there.
Invariant: nothing grows with what a server sends; frames that do not concern the call are answered or skipped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from urllib.parse import unquote

from fairlead.errors import MalformedPacket
from fairlead.protocols import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_LIMIT_BYTES = 16384  # SETTINGS_MAX_FRAME_SIZE is not raised
HEADERS_LIMIT_BYTES = 32768
MESSAGE_LIMIT_BYTES = 4096
_STREAM = 1

_STATUS_NAMES = {
    "1": "CANCELLED",
    "2": "UNKNOWN",
    "3": "INVALID_ARGUMENT",
    "4": "DEADLINE_EXCEEDED",
    "5": "NOT_FOUND",
    "6": "ALREADY_EXISTS",
    "7": "PERMISSION_DENIED",
    "8": "RESOURCE_EXHAUSTED",
    "9": "FAILED_PRECONDITION",
    "10": "ABORTED",
    "11": "OUT_OF_RANGE",
    "12": "UNIMPLEMENTED",
    "13": "INTERNAL",
    "14": "UNAVAILABLE",
    "15": "DATA_LOSS",
    "16": "UNAUTHENTICATED",
}
SERVING_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


class _Type(IntEnum):
    """Types of frames (RFC 9113 section 6)."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    CONTINUATION = 9


class _Flag(IntFlag):
    NONE = 0
    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


@dataclass(frozen=True, slots=True)
class HealthAnswer:
    """How the call ended; ``detail`` comes in part from the server."""

    serving: bool
    detail: str


class HealthCall:
    """A call, from its first byte to its answer."""

    def __init__(self, authority: str, service: str, *, scheme: str, user_agent: str) -> None:
        self.answer: HealthAnswer | None = None
        self._buffer = bytearray()
        self._settled = False
        self._block: bytearray | None = None
        self._block_ends_stream = False
        self._fields: dict[str, str] = {}
        self._message = bytearray()
        fields = [
            (":method", "POST"),
            (":scheme", scheme),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", user_agent),
        ]
        name = service.encode()
        request = b"\x0a" + _varint(len(name)) + name if name else b""
        settings = struct.pack("!HIHI", 0x1, 0, 0x2, 0)  # HEADER_TABLE_SIZE 0, ENABLE_PUSH 0
        self._out = bytearray(
            PREFACE
            + _frame(_Type.SETTINGS, _Flag.NONE, 0, settings)
            + _frame(_Type.HEADERS, _Flag.END_HEADERS, _STREAM, hpack.encode(fields))
            + _frame(_Type.DATA, _Flag.END_STREAM, _STREAM, struct.pack("!BI", 0, len(request)) + request)
        )

    def data_to_send(self) -> bytes:
        """What is to be sent now; may be empty."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive_data(self, data: bytes) -> None:
        """Take what the server sent.

        Raises:
            MalformedPacket: It is not HTTP/2, or not gRPC.
        """
        self._buffer += data
        while self.answer is None and len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if length > FRAME_LIMIT_BYTES:
                raise MalformedPacket("a frame is longer than HTTP/2 allows" if self._settled else "not HTTP/2")
            if len(self._buffer) < 9 + length:
                return
            kind, flags, stream = struct.unpack("!BBI", self._buffer[3:9])
            payload = bytes(self._buffer[9 : 9 + length])
            del self._buffer[: 9 + length]
            self._take(kind, _Flag(flags & 0x2D), stream & 0x7FFFFFFF, payload)

    def _take(self, kind: int, flags: _Flag, stream: int, payload: bytes) -> None:
        if not self._settled and kind != _Type.SETTINGS:
            raise MalformedPacket("not HTTP/2: no SETTINGS at first")
        if self._block is not None and kind != _Type.CONTINUATION:
            raise MalformedPacket("a header block is interrupted")
        match kind:
            case _Type.SETTINGS:
                self._settled = True
                if not flags & _Flag.ACK:
                    self._out += _frame(_Type.SETTINGS, _Flag.ACK, 0, b"")
            case _Type.PING:
                if not flags & _Flag.ACK:
                    self._out += _frame(_Type.PING, _Flag.ACK, 0, payload[:8].ljust(8, b"\0"))
            case _Type.GOAWAY if len(payload) < 8 or int.from_bytes(payload[:4], "big") & 0x7FFFFFFF < _STREAM:
                self.answer = HealthAnswer(False, f"the server went away: {payload[8:].decode(errors='replace')}")
            case _Type.PUSH_PROMISE:
                raise MalformedPacket("a push, which was forbidden")
            case _Type.RST_STREAM if stream == _STREAM:
                self.answer = HealthAnswer(False, f"the call was reset, error code {int.from_bytes(payload, 'big')}")
            case _Type.HEADERS if stream == _STREAM:
                content = _unpadded(payload, flags)[5 if flags & _Flag.PRIORITY else 0 :]
                self._block, self._block_ends_stream = bytearray(), bool(flags & _Flag.END_STREAM)
                self._headers(content, flags)
            case _Type.CONTINUATION if self._block is not None:
                self._headers(payload, flags)
            case _Type.DATA if stream == _STREAM:
                self._data(_unpadded(payload, flags), flags)

    def _headers(self, content: bytes, flags: _Flag) -> None:
        assert self._block is not None
        self._block += content
        if len(self._block) > HEADERS_LIMIT_BYTES:
            raise MalformedPacket("headers without end")
        if flags & _Flag.END_HEADERS:
            self._fields |= hpack.decode(bytes(self._block))
            self._block = None
            if self._block_ends_stream:
                self._end()

    def _data(self, content: bytes, flags: _Flag) -> None:
        self._message += content
        if len(self._message) > MESSAGE_LIMIT_BYTES:
            raise MalformedPacket("a message that is too long for an answer of Health/Check")
        if flags & _Flag.END_STREAM:
            self._end()

    def _end(self) -> None:
        """The stream has ended: what was it?"""
        status = self._fields.get("grpc-status")
        if status is None:
            http = self._fields.get(":status", "")
            if http not in ("", "200"):
                self.answer = HealthAnswer(False, f"HTTP status {http}")
                return
            raise MalformedPacket("an answer without grpc-status")
        if status != "0":
            said = unquote(self._fields.get("grpc-message", ""))
            name = _STATUS_NAMES.get(status, "")
            self.answer = HealthAnswer(False, f"gRPC status {status} {name}".rstrip() + (f": {said}" if said else ""))
            return
        serving = _serving_status(bytes(self._message))
        name = SERVING_STATUSES[serving] if serving < len(SERVING_STATUSES) else str(serving)
        self.answer = HealthAnswer(name == "SERVING", name)


def _serving_status(message: bytes) -> int:
    """Field 1 of HealthCheckResponse in a length-prefixed message; 0 when it is left out."""
    if len(message) < 5 or message[0] != 0 or int.from_bytes(message[1:5], "big") != len(message) - 5:
        raise MalformedPacket("not one uncompressed gRPC message")
    body = message[5:]
    if not body:
        return 0
    if body[0] != 0x08 or len(body) < 2 or body[1] & 0x80:
        raise MalformedPacket("not a HealthCheckResponse")
    return body[1]


def _unpadded(payload: bytes, flags: _Flag) -> bytes:
    if not flags & _Flag.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise MalformedPacket("a frame of nothing but padding")
    return payload[1 : len(payload) - payload[0]]


def _frame(kind: _Type, flags: _Flag, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


def _varint(number: int) -> bytes:
    low = bytearray()
    while number >= 0x80:
        low.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(low) + bytes([number])
