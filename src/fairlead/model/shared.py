# SPDX-License-Identifier: Apache-2.0
"""A mapping that never changes and shares with its successor whatever is the same in both.

A change among 100,000 entries copies a group of parts and a part with a 1,024th of the entries: some 160 references,
for what a copy costs is to count each reference anew. What differs between two of them is found by looking at the
groups, and in them the parts, that are not the same object.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from itertools import chain, compress
from operator import is_not
from typing import Generic, TypeAlias, TypeVar, cast

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
_BITS = 5
_WIDTH = 1 << _BITS  # groups, and parts of each
_LOW = _WIDTH - 1
PARTS = _WIDTH * _WIDTH
_MASK = PARTS - 1
_Group: TypeAlias = "tuple[dict[K, V], ...]"


class Shared(Mapping[K, V], Generic[K, V]):
    """Entries in parts by the hash of their key; their order is that of no one.

    Args:
        entries: To begin with.
    """

    __slots__ = ("_count", "_groups")

    def __init__(self, entries: Mapping[K, V] | None = None) -> None:
        found: defaultdict[int, dict[K, V]] = defaultdict(dict)
        for key, value in (entries or {}).items():
            found[hash(key) & _MASK][key] = value
        self._groups: tuple[_Group[K, V], ...] = _renewed(cast("tuple[_Group[K, V], ...]", _NOTHING), found)
        self._count = len(entries) if entries else 0

    def __getitem__(self, key: K) -> V:
        index = hash(key) & _MASK
        return self._groups[index >> _BITS][index & _LOW][key]

    def __contains__(self, key: object) -> bool:
        index = hash(key) & _MASK
        return key in self._groups[index >> _BITS][index & _LOW]

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self._parts())

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Shared):
            return self._groups == other._groups  # the same groups are equal without a look into them
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __hash__(self) -> int:
        raise TypeError("a mapping has no hash")

    def __repr__(self) -> str:
        return f"Shared({dict(self)!r})"

    def get(self, key: K, default: V | None = None) -> V | None:  # type: ignore[override]
        """The value, or ``default``."""
        index = hash(key) & _MASK
        return self._groups[index >> _BITS][index & _LOW].get(key, default)

    def values(self) -> ValuesView[V]:
        """All values."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """All entries."""
        return _Items(self)

    @property
    def groups(self) -> tuple[tuple[Mapping[K, V], ...], ...]:
        """What is shared: a group, and a part in it, is the same object for as long as nothing in it changes."""
        return self._groups

    def _parts(self) -> Iterator[dict[K, V]]:
        return chain.from_iterable(group for group in self._groups if group is not _EMPTY)

    def changed(self, puts: Mapping[K, V], deletes: Iterable[K] = ()) -> Shared[K, V]:
        """With these entries put, or taken away; itself when that changes nothing."""
        if not self._count:
            return Shared(puts) if puts else self
        found: dict[int, dict[K, V]] = {}  # parts that are no longer shared
        count = self._count
        for key, value in puts.items():
            index = hash(key) & _MASK
            part = found.get(index)
            if part is None:
                part = self._groups[index >> _BITS][index & _LOW]
                if key in part and (part[key] is value or part[key] == value):
                    continue
                part = found[index] = dict(part)
            count += key not in part
            part[key] = value
        for key in deletes:
            index = hash(key) & _MASK
            part = found.get(index)
            if part is None:
                part = self._groups[index >> _BITS][index & _LOW]
            if key in part and key not in puts:
                if index not in found:
                    part = found[index] = dict(part)
                del part[key]
                count -= 1
        return _made(_renewed(self._groups, found), count) if found else self

    def without(self, other: Shared[K, V]) -> Shared[K, V]:
        """Those entries whose keys the other one has not; itself when that is all of them."""
        groups = tuple(_left(mine, theirs) for mine, theirs in zip(self._groups, other._groups, strict=True))
        left = _made(groups, sum(len(part) for group in groups if group is not _EMPTY for part in group))
        return left if len(left) < self._count else self

    def under(self, other: Shared[K, V]) -> Shared[K, V]:
        """Entries of both; those of the other one win."""
        if not self._count:
            return other
        pairs = (pair for groups in _unlike(self._groups, other._groups) for pair in _unlike(*groups))
        return other.changed({key: part[key] for part, theirs in pairs for key in part if key not in theirs})

    def differing(self, other: Shared[K, V]) -> set[K]:
        """Keys that are in one of both only, or stand for values that are not equal."""
        found: set[K] = set()
        for mine, theirs in _unlike(self._groups, other._groups):
            for one, like in _unlike(mine, theirs):
                found |= _differing(one, like)
        return found


class _Values(ValuesView[V]):
    def __iter__(self) -> Iterator[V]:
        return chain.from_iterable(part.values() for part in self._mapping._parts())  # type: ignore[attr-defined]  # noqa: SLF001


class _Items(ItemsView[K, V]):
    def __iter__(self) -> Iterator[tuple[K, V]]:
        return chain.from_iterable(part.items() for part in self._mapping._parts())  # type: ignore[attr-defined]  # noqa: SLF001


def _made(groups: tuple[_Group[K, V], ...], count: int) -> Shared[K, V]:
    made: Shared[K, V] = Shared()
    made._groups, made._count = groups, count  # noqa: SLF001 - one of ours
    return made


def _renewed(groups: tuple[_Group[K, V], ...], parts: Mapping[int, dict[K, V]]) -> tuple[_Group[K, V], ...]:
    """These groups with other parts, by number, in place of some."""
    if not parts:
        return groups
    opened: dict[int, list[dict[K, V]]] = {}
    for index, part in parts.items():
        number = index >> _BITS
        if number not in opened:
            opened[number] = list(groups[number])
        opened[number][index & _LOW] = part
    return tuple(group if number not in opened else tuple(opened[number]) for number, group in enumerate(groups))


def _left(mine: _Group[K, V], theirs: _Group[K, V]) -> _Group[K, V]:
    """A group without the keys of another."""
    if theirs is _EMPTY:
        return mine
    return tuple(
        part if not other else {} if part is other else {key: part[key] for key in part if key not in other}
        for part, other in zip(mine, theirs, strict=True)
    )


def _unlike(ones: tuple[T, ...], others: tuple[T, ...]) -> Iterator[tuple[T, T]]:
    """Pairs that are not the same object."""
    return compress(zip(ones, others, strict=True), map(is_not, ones, others))


_EMPTY: _Group[object, object] = tuple({} for _ in range(_WIDTH))  # shared, and never written to
_NOTHING = (_EMPTY,) * _WIDTH


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
