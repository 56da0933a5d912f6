# SPDX-License-Identifier: Apache-2.0
"""A look at everything that the kernel holds: what is not as it was written.

It is taken part by part, so that changes need not wait for all of it; each part is about what is held by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from fairlead.dataplane.xdp import records
from fairlead.dataplane.xdp.held import TableHeld
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.installation import Installation
from fairlead.dataplane.xdp.mirror import Drift

NOTES = "names_"  # maps that only a later agent reads
_TABLES = 64  # of a part


def look(installation: Installation, found: set[object], *, notes: bool) -> Iterator[None]:
    """Add to ``found`` the nouns that are not held as they were written; what has no name is put right at once.

    A server is known by its key, a table by its digest, a service by ``("service", name)``, a listener by itself.
    It ends early when everything was let go or removed.

    Args:
        installation: What is looked at.
        found: Where nouns are added.
        notes: Whether also at what the agent notes for a later one.
    """
    held = installation.held
    for name, mirror in held.mirrors.items():
        if name.startswith(NOTES) and not notes:
            continue
        for drift in mirror.look():
            if drift:
                _repair(held, name, drift, found)
            yield
            if installation.held is not held:
                return
            held.flush()
    for _ in installation.refresh_near():
        yield
        if installation.held is not held:
            return
    tables = iter(list(held.tables.values()))
    while part := list(islice(tables, _TABLES)):
        found.update(it.digest for it in part if held.tables.get(it.digest) is it and _is_damaged(installation, it))
        yield
        if installation.held is not held:
            return


def _repair(held: Holdings, name: str, drift: Drift, found: set[object]) -> None:
    mirror = held.mirrors[name]
    wrong = drift.other | drift.missing
    if name == "servers":
        keys = (held.servers_by_id[int.from_bytes(key, "little")].spec.key for key in wrong)
        found.update(key for key in keys if key in held.servers)
    elif name == "services":
        numbers = (held.services_by_id[int.from_bytes(key, "little")] for key in wrong)
        found.update(("service", it.spec.name) for it in numbers)
    elif name in ("listeners4", "listeners6", "ranges"):
        taken = {(where, key): it for it in held.listeners for where, key in records.listener_keys(it)}
        found.update(taken[name, key] for key in wrong if (name, key) in taken)
    for key in wrong:
        mirror.put(key, mirror.content[key])
    if mirror.kernel is not None:
        mirror.kernel.delete_many(drift.extra)
    held.flush()


def _is_damaged(installation: Installation, table: TableHeld) -> bool:
    """Whether a block is not what its digest says; a block that reads as it did then is not digested again."""
    block = installation.slots(table.base, table.units)
    mark = hash(block)
    if mark == table.mark:
        return False
    if records.block_digest(block) != table.check:
        return True
    table.mark = mark
    return False
