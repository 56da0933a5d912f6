# SPDX-License-Identifier: Apache-2.0
"""A mapping that never changes and shares with its successor whatever is the same in both.

A change among 100,000 entries copies a 256th of them, and what differs between two of them is found by looking
at the parts that are not the same object.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from itertools import chain, compress
from operator import is_not
from typing import Generic, TypeVar, cast

K = TypeVar("K")
V = TypeVar("V")
PARTS = 256  # a power of two
_MASK = PARTS - 1


class Shared(Mapping[K, V], Generic[K, V]):
    """Entries in parts by the hash of their key; their order is that of no one.

    Args:
        entries: To begin with.
    """

    __slots__ = ("_count", "_parts")

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        parts: list[dict[K, V]] = []
        if entries:
            parts = [{} for _ in range(PARTS)]
            for key, value in entries.items():
                parts[hash(key) & _MASK][key] = value
        self._parts: tuple[dict[K, V], ...] = tuple(parts) or cast("tuple[dict[K, V], ...]", _NOTHING)
        self._count = len(entries) if entries else 0

    def __getitem__(self, key: K) -> V:
        return self._parts[hash(key) & _MASK][key]

    def __contains__(self, key: object) -> bool:
        return key in self._parts[hash(key) & _MASK]

    def __iter__(self) -> Iterator[K]:
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Shared):
            return self._parts == other._parts  # the same parts are equal without a look into them
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __hash__(self) -> int:
        raise TypeError("a mapping has no hash")

    def __repr__(self) -> str:
        return f"Shared({dict(self)!r})"

    def get(self, key: K, default: V | None = None) -> V | None:  # type: ignore[override]
        """The value, or ``default``."""
        return self._parts[hash(key) & _MASK].get(key, default)

    def values(self) -> ValuesView[V]:
        """All values."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """All entries."""
        return _Items(self)

    @property
    def parts(self) -> tuple[Mapping[K, V], ...]:
        """What is shared: each is the same object for as long as nothing in it changes."""
        return self._parts

    def changed(self, puts: Mapping[K, V], deletes: Iterable[K] = ()) -> Shared[K, V]:
        """With these entries put, or taken away; itself when that changes nothing."""
        if not self._count:
            return Shared(puts) if puts else self
        parts: list[dict[K, V]] | None = None
        copied: set[int] = set()
        count = self._count
        gone = {(key, False) for key in deletes if key in self and key not in puts}
        for key, there in [*((key, True) for key in puts), *gone]:
            index = hash(key) & _MASK
            part = self._parts[index] if parts is None else parts[index]
            if there and key in part and (part[key] is puts[key] or part[key] == puts[key]):
                continue
            if parts is None:
                parts = list(self._parts)
            if index not in copied:
                copied.add(index)
                part = parts[index] = dict(part)
            count -= key in part
            if there:
                part[key] = puts[key]
                count += 1
            else:
                del part[key]
        if parts is None:
            return self
        return _made(tuple(parts), count)

    def without(self, other: Shared[K, V]) -> Shared[K, V]:
        """Those entries whose keys the other one has not."""
        if not self._count:
            return self
        parts = tuple(
            mine if not theirs else {} if mine is theirs else {k: v for k, v in mine.items() if k not in theirs}
            for mine, theirs in zip(self._parts, other._parts, strict=True)
        )
        return _made(parts, sum(map(len, parts)))

    def under(self, other: Shared[K, V]) -> Shared[K, V]:
        """Entries of both; those of the other one win."""
        if not self._count:
            return other
        parts = tuple(
            theirs if not mine or mine is theirs else {**mine, **theirs}
            for mine, theirs in zip(self._parts, other._parts, strict=True)
        )
        return _made(parts, sum(map(len, parts)))

    def differing(self, other: Shared[K, V]) -> set[K]:
        """Keys that are in one of both only, or stand for values that are not equal."""
        found: set[K] = set()
        both = zip(self._parts, other._parts, strict=True)
        for mine, theirs in compress(both, map(is_not, self._parts, other._parts)):
            found |= _differing(mine, theirs)
        return found


class _Values(ValuesView[V]):
    def __iter__(self) -> Iterator[V]:
        return chain.from_iterable(part.values() for part in self._mapping.parts)  # type: ignore[attr-defined]


class _Items(ItemsView[K, V]):
    def __iter__(self) -> Iterator[tuple[K, V]]:
        return chain.from_iterable(part.items() for part in self._mapping.parts)  # type: ignore[attr-defined]


def _made(parts: tuple[dict[K, V], ...], count: int) -> Shared[K, V]:
    made: Shared[K, V] = Shared()
    made._parts, made._count = parts, count  # noqa: SLF001 - one of ours
    return made


_NOTHING: tuple[dict[object, object], ...] = tuple({} for _ in range(PARTS))  # shared, and never written to


def shared(entries: Mapping[K, V]) -> Shared[K, V]:
    """These entries as such a mapping."""
    return entries if isinstance(entries, Shared) else Shared(entries)


def differing(one: Mapping[K, V], other: Mapping[K, V]) -> set[K]:
    """Keys that are in one of both only, or stand for values that are not equal."""
    if one is other:
        return set()
    if isinstance(one, Shared) and isinstance(other, Shared):
        return one.differing(other)
    return _differing(one, other)


def _differing(one: Mapping[K, V], other: Mapping[K, V]) -> set[K]:
    found = {key for key, value in one.items() if key not in other or not (other[key] is value or other[key] == value)}
    found.update(key for key in other if key not in one)
    return found
