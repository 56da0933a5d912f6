# SPDX-License-Identifier: Apache-2.0
"""Bytes of a configuration file to text. Invariant: only printable UTF-8 of bounded size gets past this module."""

from __future__ import annotations

import codecs
import re

from fairlead.config.findings import Refused

MAX_BYTES = 8 * 1024 * 1024

# The characters that YAML 1.2 section 5.1 allows in a stream.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# YAML 1.1 section 4.1.4: the parser counts all of these as the end of a line.
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


class Unreadable(Refused):
    """The bytes are no text; ``line`` and ``column`` are 1-based."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


def decode(data: bytes) -> str:
    """Return the text of a configuration file, without its byte order mark.

    Raises:
        Unreadable: It is too big, in another encoding than UTF-8, or has control characters.
    """
    if len(data) > MAX_BYTES:
        raise Unreadable(
            f"the file has {len(data)} bytes, at most {MAX_BYTES} (8 MiB) are read; split it over conf.d/*.yaml"
        )
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF32_BE, "UTF-32"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
    ):
        if data.startswith(mark):
            raise Unreadable(f"the file is {encoding}; save it as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = _place(before.decode(errors="replace"))
        raise Unreadable(
            f"byte 0x{data[error.start]:02x} is not UTF-8 (Latin-1 perhaps?); save the file as UTF-8", line, column
        ) from None
    if found := _FORBIDDEN.search(text):
        line, column = _place(text[: found.start()])
        character = ord(found.group())
        if character == 0:
            raise Unreadable("NUL byte; a configuration file is text in UTF-8", line, column)
        raise Unreadable(f"control character U+{character:04X}; remove it, or write it as an escape", line, column)
    return text


def _place(before: str) -> tuple[int, int]:
    """Line and column, 1-based, of the character that follows ``before``."""
    lines = _BREAK.split(before)
    return len(lines), len(lines[-1]) + 1
