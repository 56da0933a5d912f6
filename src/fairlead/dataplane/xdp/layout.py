# SPDX-License-Identifier: Apache-2.0
"""How a C struct is said in Python: one line with its members, and a dataclass that packs and unpacks by it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import attrgetter
from typing import ClassVar, Self


class Layout:
    """One C struct: names and types of its members, in order. ``addr`` is 16 bytes, ``port`` a port number."""

    _CODES: ClassVar = {
        "u8": "B",
        "u16": "H",
        "u32": "I",
        "u64": "Q",
        "addr": "16s",
        "v4": "4s",
        "be32": "4s",
    }

    def __init__(self, c_name: str, members: str) -> None:
        """``members``: ``type name``, separated by commas; ``zero:N`` is padding of N bytes."""
        self.c_name = c_name
        self.text = members
        self.members: list[tuple[str, int]] = []
        self._ports: list[int] = []  # to be converted one by one
        items = [item.strip().partition(" ") for item in members.split(",")]
        alone = all(kind not in {"u16", "u32", "u64"} for kind, _, _ in items)  # no other number has a byte order
        code = ">" if alone else "<"
        for kind, _, name in items:
            if kind.startswith("zero:"):
                code += f"{kind[5:]}x"
                continue
            self.members.append((name, struct.calcsize(code)))
            if kind == "port" and not alone:
                self._ports.append(len(self.members) - 1)
            code += self._CODES[kind] if kind != "port" else "H" if alone else "2s"
        self.values = attrgetter(*(name for name, _ in self.members))
        self._struct = struct.Struct(code)
        self.size = self._struct.size
        # The struct with these members.
        self.pack: Callable[..., bytes] = self._pack if self._ports else self._struct.pack

    def _pack(self, *values: int | bytes) -> bytes:
        row = list(values)
        for index in self._ports:
            row[index] = int(row[index]).to_bytes(2, "big")
        return self._struct.pack(*row)

    def unpack(self, raw: bytes) -> list[int | bytes]:
        """The members of the struct at the start of ``raw``."""
        row: list[int | bytes] = list(self._struct.unpack_from(raw))
        for index in self._ports:
            row[index] = int.from_bytes(bytes(row[index]), "big")
        return row


class Record:
    """A dataclass whose fields are the members of ``LAYOUT``, in order."""

    LAYOUT: ClassVar[Layout]
    __slots__ = ()

    def pack(self) -> bytes:
        """The bytes a map holds."""
        return self.LAYOUT.pack(*self.LAYOUT.values(self))

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """What the bytes of a map say."""
        return cls(*cls.LAYOUT.unpack(raw))
