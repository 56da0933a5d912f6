# SPDX-License-Identifier: Apache-2.0
"""Allow and deny lists as sorted, disjoint ranges of addresses.

Invariant: a range never spans families. IPv4 lives in the v4-mapped block of RFC 4291 section 2.5.5.2; an IPv6 prefix
that contains that block, ``::/0`` say, still speaks about IPv6 clients only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from fairlead.model.net import AddressRange, IPAddress, Prefix

_MAPPED = AddressRange(0xFFFF << 32, (0xFFFF << 32) | 0xFFFFFFFF)
_END = (1 << 128) - 1
_EVERYBODY = (AddressRange(0, _MAPPED.low - 1), _MAPPED, AddressRange(_MAPPED.high + 1, _END))


def allowed_ranges(allow: Collection[Prefix], deny: Collection[Prefix]) -> tuple[AddressRange, ...] | None:
    """Who may connect: ``allow`` (empty: everybody) without ``deny``.

    Returns:
        None when everybody may; an empty tuple when nobody may.
    """
    if not allow and not deny:
        return None
    granted = _merge(part for prefix in allow for part in _ranges(prefix)) or _EVERYBODY
    refused = _merge(part for prefix in deny for part in _ranges(prefix))
    left = tuple(_subtract(granted, refused))
    return None if left == _EVERYBODY else left


def in_ranges(ranges: Sequence[AddressRange], address: IPAddress) -> bool:
    """Whether an address is in one of these sorted, disjoint ranges."""
    number = int(address) + (_MAPPED.low if address.version == 4 else 0)
    index = bisect_left(ranges, number, key=lambda part: part.high)
    return index < len(ranges) and ranges[index].low <= number


def _ranges(prefix: Prefix) -> Iterator[AddressRange]:
    low, high = int(prefix.network_address), int(prefix.broadcast_address)
    if prefix.version == 4:
        yield AddressRange(_MAPPED.low + low, _MAPPED.low + high)
    elif low < _MAPPED.low <= high:
        yield AddressRange(low, _MAPPED.low - 1)
        if high > _MAPPED.high:
            yield AddressRange(_MAPPED.high + 1, high)
    else:
        yield AddressRange(low, high)


def _family(address: int) -> int:
    return 4 if _MAPPED.low <= address <= _MAPPED.high else 6


def _merge(ranges: Iterable[AddressRange]) -> tuple[AddressRange, ...]:
    """Sorted and disjoint; neighbours of one family become one."""
    merged: list[AddressRange] = []
    for part in sorted(ranges):
        last = merged[-1] if merged else None
        if last and part.low <= last.high + 1 and _family(part.low) == _family(last.low):
            merged[-1] = AddressRange(last.low, max(last.high, part.high))
        else:
            merged.append(part)
    return tuple(merged)


def _subtract(granted: Iterable[AddressRange], refused: tuple[AddressRange, ...]) -> Iterator[AddressRange]:
    for part in granted:
        low = part.low
        first = bisect_left(refused, low, key=lambda hole: hole.high)
        for hole in islice(refused, first, None):
            if hole.low > part.high:
                break
            if hole.low > low:
                yield AddressRange(low, hole.low - 1)
            low = hole.high + 1
        if low <= part.high:
            yield AddressRange(low, part.high)
