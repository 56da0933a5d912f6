# SPDX-License-Identifier: Apache-2.0
"""One map as the agent means it to be: what was written, what is still to write, and what the kernel really holds.

Invariant: writes wait for ``flush``, so that thousands of them take a few system calls and the caller says in which
order maps are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.dataplane.xdp.libbpf import BpfMap


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

    def use(self, kernel: BpfMap) -> None:
        """Work on this map from now on."""
        self.kernel = kernel

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

    def drift(self) -> Drift:
        """How the kernel's map differs."""
        assert self.kernel is not None
        if self.array:
            return self._array_drift(self.kernel)
        held: Mapping[bytes, bytes] = dict(self.kernel.items())
        other = frozenset(
            key for key, value in held.items() if key in self.content and not self._same(value, self.content[key])
        )
        return Drift(other, frozenset(self.content.keys() - held.keys()), frozenset(held.keys() - self.content.keys()))

    def _array_drift(self, kernel: BpfMap) -> Drift:
        if not self.content:
            return Drift()
        size = kernel.value_size
        highest = max(int.from_bytes(key, "little") for key in self.content)
        raw = kernel.first_rows(highest + 1)
        wanted = bytearray(raw)
        for key, value in self.content.items():
            at = int.from_bytes(key, "little") * size
            wanted[at : at + size] = value
        if wanted == raw:
            return Drift()
        other = []
        for key, value in self.content.items():
            at = int.from_bytes(key, "little") * size
            if raw[at : at + size] != value:
                other.append(key)
        return Drift(frozenset(other))

    def _same(self, one: bytes, other: bytes) -> bool:
        return one[: self.significant] == other[: self.significant]

    def _merged(self, key: bytes, value: bytes) -> bytes:
        assert self.kernel is not None
        held = self.kernel.get(key)
        return value if held is None else value[: self.significant] + held[self.significant :]
