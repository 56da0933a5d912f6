# SPDX-License-Identifier: Apache-2.0
"""Room for what has a number: ids that do not come back soon, and extents of the slot memory.

Invariants: an id is given out again only after all others were; an extent is given out no earlier than ``REST_S``
after it was retired, for a packet may be reading it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Container

REST_S = 1.0
_RECENT = 256


class Ids:
    """Numbers from 1 up to (not including) ``capacity``."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.former: Container[int] = set()  # that were given out before
        self._used: set[int] = set()
        self._next = 1

    def __len__(self) -> int:
        return len(self._used)

    @property
    def room(self) -> int:
        """How many are left."""
        return self.capacity - 1 - len(self._used)

    def take(self) -> int | None:
        """The next free number, if there is one."""
        used, capacity, number = self._used, self.capacity, self._next
        if len(used) >= capacity - 1:
            return None
        while number in used or not 1 <= number < capacity:
            number = number + 1 if number < capacity - 1 else 1
        used.add(number)
        self._next = number + 1
        return number

    def use(self, number: int) -> None:
        """This one is taken."""
        self._used.add(number)

    def release(self, number: int) -> None:
        """This one is free again."""
        self._used.discard(number)
        if isinstance(self.former, set):
            self.former.add(number)


class Extents:
    """Units of a memory, from 1 up to (not including) ``capacity``."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.room = max(0, capacity - 1)  # units that are free, or will be once they have rested
        # Start and length, sorted, never adjacent.
        self._free: list[tuple[int, int]] = [(1, capacity - 1)] if capacity > 1 else []
        self._at = 1
        self._retired: deque[tuple[float, int, int]] = deque()
        self._recent: deque[int] = deque(maxlen=_RECENT)

    def grow(self, capacity: int) -> None:
        """There is more of it."""
        if capacity > self.capacity:
            self._give(self.capacity, capacity - self.capacity)
            self.room += capacity - self.capacity
            self.capacity = capacity

    def use(self, base: int, units: int) -> None:
        """These are taken.

        Raises:
            ValueError: Not all of them are free.
        """
        for index, (start, length) in enumerate(self._free):
            if start <= base and base + units <= start + length:
                self._cut(index, base, units)
                return
        raise ValueError(f"units {base} to {base + units - 1} are taken")

    def take(self, units: int, now: float) -> int | None:
        """The start of a free extent, or None. Its number differs from recent ones in its low 16 bits."""
        while self._retired and self._retired[0][0] + REST_S <= now:
            _, start, length = self._retired.popleft()
            self._give(start, length)
        first = bisect_left(self._free, (self._at, 0))
        for index in [*range(first, len(self._free)), *range(first)]:
            start, length = self._free[index]
            base = start
            while base + units <= start + length:
                if base & 0xFFFF not in self._recent:
                    self._cut(index, base, units)
                    self._at = base + units
                    self._recent.append(base & 0xFFFF)
                    return int(base)
                base += 1
        return None

    def retire(self, base: int, units: int, now: float) -> None:
        """These are no longer used, as soon as they have rested."""
        self._retired.append((now, base, units))
        self.room += units

    def _cut(self, index: int, base: int, units: int) -> None:
        self.room -= units
        start, length = self._free.pop(index)
        if base > start:
            insort(self._free, (start, base - start))
        if base + units < start + length:
            insort(self._free, (base + units, start + length - base - units))

    def _give(self, start: int, length: int) -> None:
        index = bisect_left(self._free, (start, 0))
        if index < len(self._free) and self._free[index][0] == start + length:
            length += self._free.pop(index)[1]
        if index > 0 and sum(self._free[index - 1]) == start:
            before = self._free.pop(index - 1)
            start, length = before[0], before[1] + length
        insort(self._free, (start, length))
