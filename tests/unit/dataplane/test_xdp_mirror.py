# SPDX-License-Identifier: Apache-2.0
"""A look at a map finds what somebody else changed, whatever was written before, and between its parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.mirror import FEW, Mirror
from fairlead.dataplane.xdp.records import u32

PART = 2  # entries that are read at a time
KEYS = range(5)


def _number(key: bytes) -> bytes:
    return key[::-1]


class Map:
    """What a mirror needs of a map, in a dict."""

    key_size, row, value_size = 4, 1, 1

    def __init__(self, *, array: bool = False) -> None:
        self.array = array
        self.held: dict[bytes, bytes] = {u32(key): b"\0" for key in range(6)} if array else {}

    def batches(self, _most: int) -> Iterator[tuple[bytes, bytes]]:
        last = b""
        while keys := sorted((key for key in self.held if _number(key) > last), key=_number)[:PART]:
            last = _number(keys[-1])
            yield b"".join(keys), b"".join(self.held[key] for key in keys)

    def get(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.held[key] = value

    def put_many(self, items: Mapping[bytes, bytes]) -> None:
        self.held.update(items)

    def delete_many(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.held.pop(key, None)

    def holds(self, content: Mapping[bytes, bytes]) -> bool:
        if self.array:
            return all(self.held[key] == value for key, value in content.items())
        return self.held == content


def mirror_of(kernel: Map) -> Mirror:
    made = Mirror("one", array=kernel.array)
    made.use(cast("BpfMap", kernel))
    return made


def flush(mirror: Mirror) -> None:
    mirror.flush_puts()
    mirror.flush_deletes()


def parts(mirror: Mirror, kernel: Map) -> Iterator[None]:
    """A look that puts right what it finds."""
    for drift in mirror.look():
        for key in drift.other | drift.missing:
            mirror.put(key, mirror.content[key])
        kernel.delete_many(drift.extra)
        flush(mirror)
        yield


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "delete", "spoil", "spoil", "steal", "part", "part", "look"]),
        st.sampled_from(KEYS),
        st.sampled_from([b"a", b"b"]),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=700, deadline=None)
@given(st.booleans(), st.booleans(), STEPS)
def test_a_look_puts_everything_right(array: bool, crowded: bool, steps: list[tuple[str, int, bytes]]) -> None:
    kernel = Map(array=array)
    mirror = mirror_of(kernel)
    for key in KEYS if crowded else ():
        mirror.put(u32(key), b"a")
    flush(mirror)
    under_way = parts(mirror, kernel)
    for what, key, value in steps:
        match what:
            case "put":
                mirror.put(u32(key), value)
                flush(mirror)
            case "delete" if not array:
                mirror.delete(u32(key))
                flush(mirror)
            case "spoil":
                kernel.put(u32(key), value)
            case "steal" if not array:
                kernel.delete_many([u32(key)])
            case "part":
                if next(under_way, 0) == 0:
                    under_way = parts(mirror, kernel)
            case "look":
                list(under_way)
                under_way = parts(mirror, kernel)
    list(under_way)
    list(parts(mirror, kernel))
    assert kernel.holds(mirror.content)


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.booleans(), STEPS)
def test_a_look_finds_nothing_where_nobody_else_writes(
    array: bool, crowded: bool, steps: list[tuple[str, int, bytes]]
) -> None:
    kernel = Map(array=array)
    mirror = mirror_of(kernel)
    for key in KEYS if crowded else ():
        mirror.put(u32(key), b"a")
    flush(mirror)
    under_way = mirror.look()
    for what, key, value in steps:
        if what in {"put", "spoil"}:
            mirror.put(u32(key), value)
        elif what in {"delete", "steal"} and not array:
            mirror.delete(u32(key))
        elif what == "look":
            under_way = mirror.look()
        flush(mirror)
        assert what != "part" or not next(under_way, None)
    assert not any(under_way)
    assert not any(mirror.look())


def test_what_was_deleted_and_somebody_puts_back_as_it_was_goes_again() -> None:
    kernel = Map()
    mirror = mirror_of(kernel)
    for key in KEYS:
        mirror.put(u32(key), b"a")
    flush(mirror)
    list(parts(mirror, kernel))
    mirror.delete(u32(1))
    flush(mirror)
    kernel.put(u32(1), b"a")
    list(parts(mirror, kernel))
    assert kernel.held == mirror.content


@pytest.mark.parametrize("writes", [1, FEW + 1])
def test_what_reads_the_same_is_not_compared_again_and_what_was_written_is(
    writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Map()
    mirror = mirror_of(kernel)
    for key in range(2 * FEW):
        mirror.put(u32(key), b"a")
    flush(mirror)
    list(parts(mirror, kernel))
    compared = []
    real = Mirror._compared

    def counting(self: Mirror, keys: bytes, *rest: Any) -> Any:
        compared.append(keys)
        return real(self, keys, *rest)

    monkeypatch.setattr(Mirror, "_compared", counting)
    list(parts(mirror, kernel))
    assert not compared
    for key in range(writes):
        mirror.put(u32(77 + key), b"b")
    flush(mirror)
    for key in range(writes):
        kernel.put(u32(77 + key), b"a")  # as it was, and was right then
    list(parts(mirror, kernel))
    assert kernel.held == mirror.content
    assert len(compared) == (1 if writes == 1 else 2 * FEW // PART)


def test_a_look_ends_when_another_map_takes_the_place_of_this_one() -> None:
    kernel, other = Map(), Map()
    mirror = mirror_of(kernel)
    for key in KEYS:
        mirror.put(u32(key), b"a")
    flush(mirror)
    under_way = parts(mirror, kernel)
    next(under_way)
    mirror.use(cast("BpfMap", other))
    mirror.refill()
    assert not list(under_way)
    assert other.held == mirror.content
    other.put(u32(1), b"b")
    list(parts(mirror, other))
    assert other.held == mirror.content
