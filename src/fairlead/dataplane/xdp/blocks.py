# SPDX-License-Identifier: Apache-2.0
"""Where records stand in the memory of a map whose values, blocks, hold several of them.

Invariant: pure.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass

from fairlead.dataplane.xdp.layout import Layout

_USED = re.compile(rb"[^\0]")


@dataclass(frozen=True, slots=True)
class Rows:
    """Records of one layout, counted by their places.

    Attributes:
        layout: Of a record.
        block: Bytes of a block.
        places: Records in a block, one after the other.
        at: Where in a block the first one stands.
    """

    layout: Layout
    block: int
    places: int = 1
    at: int = 0

    def offset(self, place: int) -> int:
        """Where a place begins."""
        block, within = divmod(place, self.places)
        return block * self.block + self.at + within * self.layout.size

    def raw(self, memory: mmap.mmap, place: int) -> bytes:
        """The record of a place."""
        at = self.offset(place)
        return memory[at : at + self.layout.size]

    def used(self, memory: mmap.mmap, part: range) -> list[int]:
        """The places in a part, whole blocks, whose member ``kind`` is not 0."""
        kind_at = dict(self.layout.members)["kind"]
        kinds = bytearray(len(part))
        with memoryview(memory) as whole:
            for within in range(self.places):
                first = self.offset(part.start + within) + kind_at
                kinds[within :: self.places] = whole[first : self.offset(part.stop) : self.block]
        return [part.start + match.start() for match in _USED.finditer(kinds)]
