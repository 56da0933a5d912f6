# SPDX-License-Identifier: Apache-2.0
"""LookupTables: which recipe a service gets, and the digest that names it.

Invariant: equal digests mean equal slots on every node; a recipe holds nothing that its slots do not depend on.
"""

from __future__ import annotations

import hashlib
from array import array
from itertools import cycle, islice

from fairlead.errors import ContractViolation
from fairlead.model.service import Scheduler
from fairlead.model.state import TableMember, TableSpec
from fairlead.policy import maglev
from fairlead.policy.members import Choice
from fairlead.policy.rising import FULL
from fairlead.policy.turns import reduced, spread

MAGLEV_SIZE = 65537  # section 5.3 of the Maglev paper; shares stay within 1 % of the weights up to 655 servers
MAX_PERIOD = 65536  # turns of wrr before they repeat; weights that need more are rounded to it
SEED_SIZE = 16
PACKET_SIZES = (251, 1021, 4093, 16381, MAGLEV_SIZE)  # primes just under powers of two
SLOTS_OF_LIGHTEST = 100
MAX_MEMBERS = 65535  # slots are 16-bit indexes


_FILLINGS = {
    Scheduler.MAGLEV: Scheduler.MAGLEV,
    Scheduler.SH: Scheduler.MAGLEV,
    Scheduler.RANDOM: Scheduler.MAGLEV,
    Scheduler.WRR: Scheduler.WRR,
    Scheduler.RR: Scheduler.RR,
    Scheduler.LC: Scheduler.RR,
    Scheduler.WLC: Scheduler.RR,
}


def packet_seed(hash_seed: bytes | None) -> bytes:
    """The seed of all tables that packets are forwarded by: services with the same servers share one table.

    The flow hash is seeded by service all the same, and no proxy has a table of the same digest.
    """
    return hashlib.blake2b(b"packets", digest_size=SEED_SIZE, key=hash_seed or b"").digest()


def packet_recipe(scheduler: Scheduler, seed: bytes, choice: Choice) -> TableSpec:
    """The table of a service whose packets are forwarded; ``seed`` is a ``packet_seed``.

    Unlike a proxy, the kernel may hold ten thousand of them, so they are no larger than accuracy asks for: the
    lightest server has 100 slots or more, as far as the largest size goes.
    """
    spec = recipe(scheduler, seed, choice)
    size = spec.size
    if spec.scheduler is Scheduler.MAGLEV:
        weights = [member.weight for member in spec.members]
        enough = SLOTS_OF_LIGHTEST * sum(weights) // min(weights)
        size = next((size for size in PACKET_SIZES if size >= enough), PACKET_SIZES[-1])
    return TableSpec(spec.scheduler, size, seed, spec.members, spec.live)


def recipe(scheduler: Scheduler, seed: bytes, choice: Choice) -> TableSpec:
    """The table of a service that forwards (``choice.live`` is not empty); ``seed`` is the service's.

    ``maglev``, ``sh`` and ``random`` share the Maglev filling; its members are the whole tier, so that a server that
    comes or goes moves its own slots only. ``rr``, ``lc`` and ``wlc`` share a table with one slot for each live server,
    ``wrr`` has one period of its weighted turns, and so has ``rr`` while a server has a share only; their members are
    the live servers.
    """
    filling = _FILLINGS[scheduler]
    live = frozenset([member.key for member in choice.live])
    if filling is Scheduler.MAGLEV:
        return TableSpec(filling, MAGLEV_SIZE, seed, _base_members(choice), live)
    if scheduler is Scheduler.WRR:
        weights = [member.scaled_weight for member in choice.live]
    elif scheduler is Scheduler.RR and any(member.share < FULL for member in choice.live):
        filling, weights = Scheduler.WRR, [member.share for member in choice.live]
    else:
        weights = [1] * len(choice.live)
    turns = reduced(weights, MAX_PERIOD)
    members = (TableMember(it.key, str(it.server.endpoint), turn) for it, turn in zip(choice.live, turns, strict=True))
    return TableSpec(filling, sum(turns), bytes(SEED_SIZE), tuple(members), live)


def _base_members(choice: Choice) -> tuple[TableMember, ...]:
    """A server whose weight was set to 0 at run time stays in the base, dead, by its weight in the file."""
    return tuple(
        [
            TableMember(member.key, str(member.server.endpoint), base, member.share)
            for member in choice.tier
            if (base := member.weight or member.server.weight)
        ]
    )


def digest(spec: TableSpec) -> str:
    """The name of a table: 32 hex digits."""
    text = hashlib.blake2b(digest_size=16)
    fields = [spec.scheduler, str(spec.size), spec.seed.hex()]
    for key, identity, weight, share in spec.members:
        lives = "live" if share == FULL else f"live {share}%"
        fields += (key, identity, str(weight), lives if key in spec.live else "dead")
    text.update("\0".join(fields).encode())
    return text.hexdigest()


def build(spec: TableSpec, filling: maglev.Filling = maglev.PURE) -> array[int]:
    """The slots of a table, as indexes into ``spec.members``; only live members are named.

    Args:
        spec: The recipe.
        filling: What fills a Maglev table.

    Raises:
        ContractViolation: No member lives, or there are more members than indexes or slots.
    """
    live = [member.key in spec.live for member in spec.members]
    if not any(live):
        raise ContractViolation("a lookup table needs a live member; a service without one does not forward")
    is_maglev = _FILLINGS[spec.scheduler] is Scheduler.MAGLEV
    if len(live) > MAX_MEMBERS or (len(live) if is_maglev else sum(live)) > spec.size:
        raise ContractViolation(f"{len(live)} members do not fit a table of {spec.size} slots (at most {MAX_MEMBERS})")
    if is_maglev:
        shares = [it.share if it.key in spec.live else 0 for it in spec.members]
        return maglev.fill([(it.identity, it.weight) for it in spec.members], shares, spec.seed, spec.size, filling)
    order = [index for index, lives in enumerate(live) if lives]
    if spec.scheduler is Scheduler.WRR:
        turns = reduced([spec.members[index].weight for index in order], MAX_PERIOD)
        order = [order[turn] for turn in spread(turns)]
    return array("H", islice(cycle(order), spec.size))
