# SPDX-License-Identifier: Apache-2.0
"""Interfaces of this network namespace, by name and by index."""

from __future__ import annotations

import socket


def interfaces() -> dict[str, int]:
    """Index by name."""
    return {name: index for index, name in socket.if_nameindex()}


def name_of(index: int) -> str:
    """The name of an interface, for people; one that has gone is told by its index."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"#{index}"
