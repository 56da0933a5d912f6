# SPDX-License-Identifier: Apache-2.0
"""One map as the agent means it to be: what was written, what is still to write, and what the kernel really holds.

Invariants: writes wait for ``flush``, so that thousands of them take a few system calls and the caller says in which
order maps are written. What was found to be right is not compared again while it reads the same and no key in it was
written to: what was right then may be wrong now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fairlead.dataplane.xdp.libbpf.maps import BpfMap

FEW = 512  # keys: to look for more in every part takes longer than to compare all entries
PART = 512  # entries: to compare them takes less than half a millisecond


@dataclass(frozen=True, slots=True)
class Drift:
    """Keys whose value is another one, keys that are missing, and keys that nobody asked for."""

    other: frozenset[bytes] = frozenset()
    missing: frozenset[bytes] = frozenset()
    extra: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.other or self.missing or self.extra)


@dataclass(slots=True)
class Mirror:
    """One map. ``array``: keys are numbers, values of those not asked for do not matter, nothing is deleted.

    ``significant``: so many bytes of a value are the agent's; the program writes the rest.
    """

    name: str
    array: bool = False
    significant: int | None = None
    kernel: BpfMap | None = None
    content: dict[bytes, bytes] = field(default_factory=dict)
    _puts: dict[bytes, bytes] = field(default_factory=dict)
    _deletes: set[bytes] = field(default_factory=set)
    _changed: set[bytes] = field(default_factory=set)  # of those to be set: keys that the kernel may have
    _right: set[int] = field(default_factory=set)  # hashes of parts that were as they should be when they were read
    _written: set[bytes] = field(default_factory=set)  # keys that were set or forgotten since
    _watched: bool = False  # whether anybody has looked yet
    _rows: int = 0  # of an array: that the agent has

    def use(self, kernel: BpfMap) -> None:
        """Work on this map from now on."""
        self.kernel = kernel

    def adopt(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over what the kernel's map holds."""
        for key, value in entries:
            self.content[key] = value
            if self.array:
                self._count(key)

    def _count(self, key: bytes) -> None:
        number = int.from_bytes(key, "little")
        if number >= self._rows:
            self._rows = number + 1

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key, when flushed."""
        if self._watched:
            self._written.add(key)
        if self.array and key not in self.content:
            self._count(key)
        if self.significant is not None and (key in self.content or key in self._deletes):
            self._changed.add(key)
        if self._deletes:
            self._deletes.discard(key)
        self._puts[key] = self.content[key] = value

    def delete(self, key: bytes) -> None:
        """Forget a key, when flushed."""
        if self._watched:
            self._written.add(key)
        self._puts.pop(key, None)
        if self.content.pop(key, None) is not None:
            self._deletes.add(key)

    def flush_puts(self) -> None:
        """Write what is set."""
        if self._puts and self.kernel is not None:
            puts, self._puts = self._puts, {}
            for key in self._changed & puts.keys():
                puts[key] = self._merged(key, puts[key])
            self._changed.clear()
            if len(puts) > 2:
                self.kernel.put_many(puts)
            else:
                for key, value in puts.items():
                    self.kernel.put(key, value)

    def flush_deletes(self) -> None:
        """Delete what is forgotten."""
        if self._deletes and self.kernel is not None:
            deletes, self._deletes = self._deletes, set()
            if not self.array:
                self.kernel.delete_many(deletes)

    def refill(self) -> None:
        """Write everything again, into a map that is empty."""
        assert self.kernel is not None
        self._puts.clear()
        self._deletes.clear()
        self._changed.clear()
        self.kernel.put_many(self.content)

    def look(self) -> Iterator[Drift]:
        """How the kernel's map differs, part by part, the last part being what is missing.

        What is set or forgotten is to be flushed before each part; that may be done between parts as well. It ends
        early when another map takes the place of this one.
        """
        kernel = self.kernel
        assert kernel is not None
        written, self._written, self._watched = self._written, set(), True
        right, self._right = self._right if len(written) <= FEW else set(), set()
        seen, count = [], 0
        for keys, values in kernel.batches(PART):
            mark = hash((keys, values))
            drift = Drift()
            if mark not in right or any(key in keys for key in written):
                drift = self._compared(keys, values, kernel)
            if not drift:
                self._right.add(mark)
            seen.append(keys)
            count += len(keys) // kernel.key_size - len(drift.extra)
            yield drift
            if self.kernel is not kernel:
                return
            if self.array and count >= self._rows:
                return
        if count != len(self.content):  # one that is missing or, as entries came and went meanwhile, none
            size = kernel.key_size
            held = {keys[at : at + size] for keys in seen for at in range(0, len(keys), size)}
            yield Drift(missing=frozenset(self.content.keys() - held - self._written))

    def _compared(self, keys: bytes, values: bytes, kernel: BpfMap) -> Drift:
        """A part of the map, entry by entry."""
        size, row, content = kernel.key_size, kernel.row, self.content
        other, extra = set(), set()
        for at in range(len(keys) // size):
            key = keys[at * size : (at + 1) * size]
            wanted = content.get(key)
            if wanted is None:
                extra.add(key)
            elif not self._same(values[at * row : (at + 1) * row], wanted):
                other.add(key)
        return Drift(frozenset(other), extra=frozenset() if self.array else frozenset(extra))

    def _same(self, one: bytes, other: bytes) -> bool:
        return one[: self.significant] == other[: self.significant]

    def _merged(self, key: bytes, value: bytes) -> bytes:
        assert self.kernel is not None
        held = self.kernel.get(key)
        return value if held is None else value[: self.significant] + held[self.significant :]
