# SPDX-License-Identifier: Apache-2.0
"""As much HPACK as one call needs (RFC 7541): no dynamic table, which HTTP/2 lets a client forbid.

Invariants: fields are sent literally; of received fields only names and values spelled in ASCII are understood, the
others are skipped, which the framing of the block allows.
"""

from __future__ import annotations

from fairlead.errors import MalformedPacket

_STATUS_FIRST, _STATUSES = 8, ("200", "204", "206", "304", "400", "404", "500")  # appendix A, indexes 8 to 14

# Appendix B by length of code. The code is canonical: within a length, codes count up in the order of the symbols.
# Codes over 15 bits are those of control characters, of the backslash and of bytes beyond ASCII.
_BY_LENGTH = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: '!"()?',
    11: "'+|",
    12: "#>",
    13: "\0$@[]~",
    14: "^}",
    15: "<`{",
}


def _codes() -> dict[tuple[int, int], str]:
    codes: dict[tuple[int, int], str] = {}
    code, before = 0, 5
    for length, symbols in _BY_LENGTH.items():
        code <<= length - before
        before = length
        for symbol in symbols:
            codes[length, code] = symbol
            code += 1
    return codes


_SYMBOLS = _codes()


def encode(fields: list[tuple[str, str]]) -> bytes:
    """A header block of literal fields that no table remembers (section 6.2.2)."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def decode(block: bytes) -> dict[str, str]:
    """The fields of a header block that could be understood.

    Raises:
        MalformedPacket: The block is cut off.
    """
    fields: dict[str, str] = {}
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # an indexed field
            index, at = _integer(block, at, 7)
            if 0 <= index - _STATUS_FIRST < len(_STATUSES):
                fields[":status"] = _STATUSES[index - _STATUS_FIRST]
        elif first & 0xE0 == 0x20:  # the new size of a table that does not exist
            _, at = _integer(block, at, 5)
        else:
            index, at = _integer(block, at, 6 if first & 0x40 else 4)
            name: str | None
            if index:
                name = ":status" if 0 <= index - _STATUS_FIRST < len(_STATUSES) else None
            else:
                name, at = _text(block, at)
            value, at = _text(block, at)
            if name is not None and value is not None:
                fields[name] = value
    return fields


def _string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 0x7F:
        return bytes([len(raw)]) + raw
    rest, length = len(raw) - 0x7F, bytearray([0x7F])
    while rest >= 0x80:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes(length) + bytes([rest]) + raw


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """An integer (section 5.1) and where the next thing begins."""
    if at >= len(block):
        raise MalformedPacket("a header block is cut off")
    most = (1 << prefix) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in range(0, 28, 7):
        if at >= len(block):
            break
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise MalformedPacket("a header block is cut off")


def _text(block: bytes, at: int) -> tuple[str | None, int]:
    """A string (section 5.2), None when it is not understood, and where the next thing begins."""
    length, end = _integer(block, at, 7)
    compressed = block[at] & 0x80
    raw = block[end : end + length]
    if len(raw) < length:
        raise MalformedPacket("a header block is cut off")
    return (_expanded(raw) if compressed else raw.decode("ascii", "replace")), end + length


def _expanded(raw: bytes) -> str | None:
    text: list[str] = []
    code = length = 0
    for byte in raw:
        for bit in range(7, -1, -1):
            code = code << 1 | byte >> bit & 1
            length += 1
            symbol = _SYMBOLS.get((length, code))
            if symbol is not None:
                text.append(symbol)
                code = length = 0
            elif length > 15:
                return None
    return "".join(text)  # what is left is padding
