# SPDX-License-Identifier: Apache-2.0
"""The loops of a Maglev table in C (``native/maglev.c``), slot for slot what ``policy.maglev`` does.

Ten thousand services have as many tables, and one change makes one of them anew.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from pathlib import Path

from fairlead.errors import FairleadError
from fairlead.policy.maglev import Filling, Permutation, state_of
from fairlead.policy.turns import spread

_FREE = b"\xff\xff"


def filling(library: Path) -> Filling:
    """What fills tables.

    Args:
        library: The compiled library.

    Raises:
        FairleadError: It cannot be loaded.
    """
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError as error:
        raise FairleadError(
            f"{library.name} cannot be loaded ({error}); install fairlead again, or `make worker` in a checkout"
        ) from error
    native = _Native(loaded)
    return Filling(native.populate, native.reassign)


class _Native:
    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
        self._populate = library.fairlead_populate
        self._populate.argtypes, self._populate.restype = (pointer, pointer, pointer, u32, u32, pointer), None
        self._reassign = library.fairlead_reassign
        self._reassign.argtypes = (pointer, pointer, u32, ctypes.c_uint64, pointer, pointer)
        self._reassign.restype = None

    def populate(self, permutations: Sequence[Permutation], turns: Sequence[int], size: int) -> array[int]:
        """As ``policy.maglev.populate``."""
        at = array("I", [offset for offset, _ in permutations])
        skips = array("I", [skip for _, skip in permutations])
        order = array("I", spread(turns))
        owner = array("H", _FREE * size)
        self._populate(_at(at), _at(skips), _at(order), len(order), size, _at(owner))
        return owner

    def reassign(self, base: array[int], kept: bytearray, seed: bytes) -> array[int]:
        """As ``policy.maglev.reassign``; ``kept`` is used up."""
        size = len(base)
        table, work = array("H", base), array("I", bytes(4 * size))
        state = (ctypes.c_char * size).from_buffer(kept)
        self._reassign(_at(base), ctypes.addressof(state), size, state_of(seed), _at(table), _at(work))
        return table


def _at(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]
