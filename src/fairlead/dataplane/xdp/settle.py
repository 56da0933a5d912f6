# SPDX-License-Identifier: Apache-2.0
"""Which services are settled: packets of their established flows go by their slot, without a look at the flow table.

After a change of servers some flows have another server than their slot names: strays. A round goes through the flow
table, a part of it at a time, marks the words of ``touched`` where strays are, and then settles the services that
have not changed since it began (bpf/touched.h, bpf/settle.bpf.c). All that is of use only while more flows are in use
than a cache holds, which is found out here as well.

Invariants: a service is settled only by a round that began when no packet could be on its way by an older table of
its; whatever changes its record, or what it is offered at, unsettles it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fairlead.dataplane.xdp import records
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject, map_definitions

_REQUEST = struct.Struct("<4I")  # struct request of bpf/settle.bpf.c
_PART = 1 << 17  # blocks, or words, that a step looks at: some 20 ms
_REST_S = 1.0  # as long a packet may be on its way by what was written before
_AGAIN_S = 60.0  # strays end; their marks go with the next round
_COUNT_S = records.EPOCH_S
_SAMPLE = 16  # the part of the table that is counted: less than a millisecond of one of a million entries
# Flows in use, whose entries fill a cache of two megabytes. Asking for them costs more than a slot from here on
# (`python -m bench.packet --only B1 --flows N`).
_CROWDED = 1 << 15


def is_crowded(flows: int, *, before: bool) -> bool:
    """Whether so many flows are in use that a slot is asked for less; it stays so until there are half as many."""
    return flows >= (_CROWDED // 2 if before else _CROWDED)


class Settler:
    """Works on one generation's maps.

    Args:
        program: Object file of the marking programs.
        maps: Those of the forwarding program.
        touch_shift: An epoch of ``touched``, as the forwarding program has it.
    """

    def __init__(self, program: Path, maps: Mapping[str, BpfMap], touch_shift: int) -> None:
        shared = {name: maps[name] for name in map_definitions(program) if name in maps}
        constants = {"touched_mask": maps["touched"].max_entries - 1, "touch_shift": touch_shift}
        self._loaded = LoadedObject(program, constants=constants, reuse=shared)
        self._sizes = {"unmark": maps["touched"].max_entries, "mark": maps["flows4"].max_entries}
        self._mark = 0
        self._strays = 0
        self._round: Iterator[None] | None = None
        self._again_at = 0.0
        self._count_at = 0.0
        self._parts = itertools.cycle(range(_SAMPLE))
        self._sparse_since: float | None = None

    def close(self) -> None:
        """Unload."""
        self._loaded.close()

    def step(self, held: Holdings, now: float) -> None:
        """Go on with a round, or begin one if there is a reason; ``held`` has to be flushed then."""
        self._look_at_crowd(held, now)
        if self._round is None:
            due = {number for number in held.unsettled if now - held.services_by_id[number].written_at >= _REST_S}
            if not due and (not self._strays or now < self._again_at):
                return
            self._round = self._whole_round(held, due, now)
        if next(self._round, self) is self:
            self._round = None

    def _look_at_crowd(self, held: Holdings, now: float) -> None:
        if self._sparse_since is None:
            self._sparse_since = now  # or before, which nobody knows
        if now < self._count_at:
            return
        self._count_at = now + _COUNT_S
        part = max(1, self._sizes["mark"] // _SAMPLE)
        _, _, _, found = self._call("in_use", part * next(self._parts) % self._sizes["mark"], part, 0)
        crowded = is_crowded(found * self._sizes["mark"] // part, before=bool(held.settings.crowded))
        if crowded and now - self._sparse_since < 2 * records.EPOCH_S:
            return  # words of touched may have flags of this epoch
        if crowded != held.settings.crowded:
            held.settings = replace(held.settings, crowded=int(crowded))
            held.write_settings()
            self._sparse_since = now

    def _call(self, program: str, first: int, count: int, mark: int) -> tuple[int, ...]:
        return _REQUEST.unpack(self._loaded.programs[program].call(_REQUEST.pack(first, count, mark, 0)))

    def _whole_round(self, held: Holdings, due: set[int], began: float) -> Iterator[None]:
        self._mark ^= 1
        yield from self._each("unmark", self._mark)
        self._strays = 0
        yield from self._each("mark", self._mark)
        yield from self._each("unmark", self._mark ^ 1)
        self._again_at = began + _AGAIN_S
        for number in due & held.unsettled:
            if held.services_by_id[number].written_at < began:
                held.settle(number)

    def _each(self, program: str, mark: int) -> Iterator[None]:
        """A call for every part; pauses between them."""
        size = self._sizes[program]
        for first in range(0, size, _PART):
            self._strays += self._call(program, first, min(_PART, size - first), mark)[3]
            if first + _PART < size:
                yield
