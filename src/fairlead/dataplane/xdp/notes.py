# SPDX-License-Identifier: Apache-2.0
"""What the agent notes for the next one, in maps that no program reads: JSON with its length in front."""

from __future__ import annotations

import contextlib
import json
from functools import cache
from struct import Struct
from typing import Any

from fairlead.errors import DataPlaneError

# Key size and value size.
AGENT_MAPS = {
    "names_meta": (4, 512),
    "names_server": (4, 320),
    "names_service": (4, 1024),
    "names_table": (4, 64),
    "names_listener": (24, 4),
}
_JSON = json.JSONEncoder(separators=(",", ":"))


def write_note(content: object, size: int) -> bytes:
    """JSON with its length in front, as the agent's maps hold it; text is taken to be JSON.

    Raises:
        DataPlaneError: It is too long.
    """
    raw = (content if isinstance(content, str) else _JSON.encode(content)).encode()
    if len(raw) > size - 2:
        raise DataPlaneError(f"a note of {len(raw)} bytes does not fit: {raw[:60]!r}...")
    return _layout(size).pack(len(raw), raw)


def read_note(raw: bytes) -> dict[str, Any]:
    """What ``write_note`` wrote; empty when it is damaged."""
    length, text = _layout(len(raw)).unpack(raw)
    with contextlib.suppress(ValueError):
        found = json.loads(text[:length])
        if isinstance(found, dict):
            return found
    return {}


@cache
def _layout(size: int) -> Struct:
    return Struct(f"<H{size - 2}s")
