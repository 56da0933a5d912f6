# SPDX-License-Identifier: Apache-2.0
"""Words for what a write changes. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from fairlead.model.configuration import Configuration
from fairlead.policy.status import ServerStatus


def server_changes(before: ServerStatus | None, after: ServerStatus) -> tuple[str, ...]:
    """What the operator's wish changes about a server; empty: nothing."""
    if before is None:
        return ()
    pairs = (("state", before.admin.value, after.admin.value), ("weight", before.weight, after.weight))
    return tuple(f"{word} {old} -> {new}" for word, old, new in pairs if old != new)


def at_next_start(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """What a running daemon cannot change about itself."""
    later = []
    if new.workers != old.workers:
        later.append("proxy.workers takes effect at the next start")
    if new.xdp != old.xdp:
        later.append("xdp takes effect at the next start")
    if new.api != old.api:
        later.append("api takes effect at the next start")
    return tuple(later)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """No such thing, and what may have been meant."""
    near = difflib.get_close_matches(name, list(known), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"`fairlead show {kind}s` lists all"
    return f"no {kind} {name}; {hint}"
