# SPDX-License-Identifier: Apache-2.0
"""Maglev: a table of slots that spreads flows by weight and hardly changes (Eisenbud et al., NSDI 2016, section 3.4).

Invariants: a base table is filled over all members, dead or alive; a dead member's slots go to live ones by an order
of preference that belongs to the slot and not to who is dead. So exactly a dead member's slots move, and come back.
A member with a share of its slots is dead in the others; which ones are its first is fixed, too, so that a share that
grows takes slots back and moves no other.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from struct import Struct

from fairlead.policy.flowhash import GAMMA, MASK64, splitmix64
from fairlead.policy.turns import reduced, spread

Permutation = tuple[int, int]  # offset and skip: position j is slot (offset + j * skip) % size
Claim = tuple[str, int]  # identity and weight of a member

WHOLE = 100  # per cent
_HALVES = Struct("<QQ")
_SHARE_LEVEL = 64  # of the permutations one that reassigning hardly ever gets to
_FEW_SLOTS = 192  # free slots from which on looking at each is cheaper than walking into taken ones
_FEW_OF_SMALL = 64  # of a small table as many as one in so many


def permutation(identity: str, seed: bytes, size: int) -> Permutation:
    """The member's order of slots: offset and skip from two halves of one keyed hash."""
    low, high = _HALVES.unpack(hashlib.blake2b(identity.encode(), digest_size=16, key=seed).digest())
    return low % size, high % (size - 1) + 1


def populate(permutations: Sequence[Permutation], turns: Sequence[int], size: int) -> array[int]:
    """Fill a table: members take turns to claim the first slot in their order that is still free.

    Args:
        permutations: One for each member.
        turns: Turns of each member in one period; all 1 gives the paper's algorithm.
        size: Number of slots, a prime.

    Returns:
        For each slot an index into ``permutations``.
    """
    owner = array("H", bytes(2 * size))
    taken = bytearray(size)
    at = [offset for offset, _ in permutations]  # where each looks next
    skips = [skip for _, skip in permutations]
    order = cycle(spread(turns))
    few = min(_FEW_SLOTS, size // _FEW_OF_SMALL)
    for index in islice(order, size - few):
        slot, skip = at[index], skips[index]
        while taken[slot]:
            slot += skip
            if slot >= size:
                slot -= size
        taken[slot] = 1
        owner[slot] = index
        at[index] = slot
    free = {slot for slot in range(size) if not taken[slot]}
    inverses = [pow(skip, -1, size) for skip in skips]
    for index in islice(order, len(free)):
        offset, inverse = permutations[index][0], inverses[index]
        slot = min(free, key=lambda slot: (slot - offset) * inverse % size)
        free.remove(slot)
        owner[slot] = index
    return owner


def _kept(base: array[int], shares: Sequence[int], seed: bytes) -> bytearray:
    """For each slot whether its owner has it for now."""
    if all(share in {0, WHOLE} for share in shares):
        alive = bytes(bool(share) for share in shares)
        return bytearray(map(alive.__getitem__, base))
    size = len(base)
    scale, shift = next(islice(levels(seed, size), _SHARE_LEVEL, None))
    bounds = [share * size for share in shares]
    kept = bytearray((slot * scale + shift) % size * WHOLE < bounds[owner] for slot, owner in enumerate(base))
    if not any(kept):  # small shares of few slots
        return bytearray(bool(shares[owner]) for owner in base)
    return kept


def reassign(base: array[int], kept: bytearray, seed: bytes) -> array[int]:
    """Give the slots away that their owners do not have, level by level.

    A level is a permutation of all slots: slot ``taker`` looks to ``giver``, and gets its owner if that one has it.
    Levels are fixed by the seed, therefore a slot asks the same slots in the same order whoever is dead. Walking from
    whichever side is smaller keeps the work near ``size * ln(size)`` steps even when nearly all are dead.
    """
    size = len(base)
    table = array("H", base)
    givers = [slot for slot in range(size) if kept[slot]]
    orphans = {slot for slot in range(size) if not kept[slot]}
    for scale, shift in levels(seed, size):
        if len(orphans) < len(givers):
            inverse = pow(scale, -1, size)
            found = [slot for slot in orphans if kept[(slot - shift) * inverse % size]]
            for slot in found:
                table[slot] = base[(slot - shift) * inverse % size]
            orphans.difference_update(found)
        else:
            for giver in givers:
                slot = (giver * scale + shift) % size
                if slot in orphans:
                    table[slot] = base[giver]
                    orphans.remove(slot)
        if not orphans:
            break
    return table


def state_of(seed: bytes) -> int:
    """Where the generator of the levels starts."""
    return int.from_bytes(seed[:8], "little") ^ int.from_bytes(seed[8:], "little")


def levels(seed: bytes, size: int) -> Iterator[Permutation]:
    """Permutations ``slot -> (slot * scale + shift) % size``, without end."""
    state = state_of(seed)
    for level in count(1):
        chance = splitmix64((state + level * GAMMA) & MASK64)
        yield (chance >> 32) % (size - 1) + 1, (chance & 0xFFFFFFFF) % size


@dataclass(frozen=True, slots=True)
class Filling:
    """The two loops of a table: these, or the same in another language."""

    populate: Callable[[Sequence[Permutation], Sequence[int], int], array[int]] = populate
    reassign: Callable[[array[int], bytearray, bytes], array[int]] = reassign


PURE = Filling()


def fill(
    members: Sequence[Claim], shares: Sequence[int], seed: bytes, size: int, filling: Filling = PURE
) -> array[int]:
    """The table as it is used: the base table with every dead member's slots given to live members.

    Args:
        members: Identity and weight of every member, in configured order, which all nodes share.
        shares: Per cent of its slots that each has: 0 for the dead, 100 for the live; at least one above 0.
        seed: 16 bytes; nodes with the same seed and members build the same table.
        size: Number of slots, a prime, at least as many as members.
        filling: What does the work.

    Returns:
        For each slot an index into ``members``.
    """
    alive = [index for index, share in enumerate(shares) if share]
    if len(alive) == 1:
        return array("H", alive) * size
    permutations = [permutation(identity, seed, size) for identity, _ in members]
    # One whole period must fit, so that even the lightest member claims a slot.
    turns = reduced([weight for _, weight in members], size - len(members))
    base = filling.populate(permutations, turns, size)
    if min(shares) == WHOLE:
        return base
    return filling.reassign(base, _kept(base, shares, seed), seed)
