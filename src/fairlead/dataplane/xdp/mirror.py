# SPDX-License-Identifier: Apache-2.0
"""One map as the agent means it to be: what was written, what is still to write, and what the kernel really holds.

Invariant: writes wait for ``flush``, so that thousands of them take a few system calls and the caller says in which
order maps are written.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.dataplane.xdp.libbpf.maps import BpfMap


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
    _clean: int | None = None  # hash of what was read when it was last as it should be, and not written to since
    _used: int = 0  # rows of an array, by then

    def use(self, kernel: BpfMap) -> None:
        """Work on this map from now on."""
        self.kernel = kernel
        self._clean = None

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key, when flushed."""
        if self.significant is not None and (key in self.content or key in self._deletes):
            self._changed.add(key)
        self._deletes.discard(key)
        self._puts[key] = value
        self.content[key] = value

    def delete(self, key: bytes) -> None:
        """Forget a key, when flushed."""
        self._puts.pop(key, None)
        if self.content.pop(key, None) is not None:
            self._deletes.add(key)

    def flush_puts(self) -> None:
        """Write what is set."""
        if self._puts and self.kernel is not None:
            puts, self._puts, self._clean = self._puts, {}, None
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
            deletes, self._deletes, self._clean = self._deletes, set(), None
            if not self.array:
                self.kernel.delete_many(deletes)

    def refill(self) -> None:
        """Write everything again, into a map that is empty."""
        assert self.kernel is not None
        self._puts.clear()
        self._deletes.clear()
        self._changed.clear()
        self._clean = None
        self.kernel.put_many(self.content)

    def drift(self) -> Drift:
        """How the kernel's map differs; what reads the same as when nothing did is not compared entry by entry."""
        assert self.kernel is not None
        return self._array_drift(self.kernel) if self.array else self._hash_drift(self.kernel)

    def _hash_drift(self, kernel: BpfMap) -> Drift:
        batches = list(kernel.batches())
        mark = hash(tuple(batches))
        if mark == self._clean:
            return Drift()
        size, row = kernel.key_size, kernel.row
        held = {
            keys[at * size : (at + 1) * size]: values[at * row : (at + 1) * row]
            for keys, values in batches
            for at in range(len(keys) // size)
        }
        content = self.content
        other = frozenset(key for key, value in held.items() if key in content and not self._same(value, content[key]))
        found = Drift(other, frozenset(content.keys() - held.keys()), frozenset(held.keys() - content.keys()))
        self._clean = None if found else mark
        return found

    def _array_drift(self, kernel: BpfMap) -> Drift:
        if not self.content:
            return Drift()
        size = kernel.value_size
        raw = kernel.first_rows(self._rows())
        mark = hash(raw)
        if mark == self._clean:
            return Drift()
        other = set()
        for key, value in self.content.items():
            at = int.from_bytes(key, "little") * size
            if raw[at : at + size] != value:
                other.add(key)
        self._clean = None if other else mark
        return Drift(frozenset(other))

    def _rows(self) -> int:
        """How many of an array are the agent's."""
        if self._clean is None:
            self._used = max(int.from_bytes(key, "little") for key in self.content) + 1
        return self._used

    def _same(self, one: bytes, other: bytes) -> bool:
        return one[: self.significant] == other[: self.significant]

    def _merged(self, key: bytes, value: bytes) -> bytes:
        assert self.kernel is not None
        held = self.kernel.get(key)
        return value if held is None else value[: self.significant] + held[self.significant :]
