# SPDX-License-Identifier: Apache-2.0
"""Maps."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterable, Iterator, Mapping

from fairlead.dataplane.xdp.libbpf.binding import ENOTSUPP, Held, check, library, possible_cpus, read_info
from fairlead.errors import DataPlaneError

ANY, NOEXIST, EXIST = 0, 1, 2  # flags of an update
_HASH, _NO_PREALLOC = 1, 1  # BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC
_PER_CPU = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
_BATCH = 4096


class _Batch(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("elem_flags", ctypes.c_uint64), ("flags", ctypes.c_uint64))


class _MapCreate(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
        ("rest", ctypes.c_uint8 * 64),
    )


class BpfMap(Held):
    """One map. Keys and values are bytes; values of per-CPU maps are the CPUs' values one after the other."""

    def __init__(self, descriptor: int) -> None:
        """Take over ``descriptor``; it is closed with this object."""
        info = _MapInfo()
        read_info(descriptor, info, "a map")
        super().__init__(descriptor)
        self.id: int = info.id
        self.type: int = info.type
        self.name = bytes(info.name).decode()
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.max_entries: int = info.max_entries
        self.flags: int = info.map_flags
        self.per_cpu = info.type in _PER_CPU
        self._row = (self.value_size + 7) // 8 * 8 * possible_cpus() if self.per_cpu else self.value_size
        self._value = ctypes.create_string_buffer(self._row)

    @classmethod
    def hash(cls, name: str, key_size: int, value_size: int, max_entries: int) -> BpfMap:
        """A new hash map that no program uses; memory is taken as entries come."""
        options = _MapCreate(sz=ctypes.sizeof(_MapCreate), map_flags=_NO_PREALLOC)
        result = library().bpf_map_create(
            _HASH, name.encode(), key_size, value_size, max_entries, ctypes.byref(options)
        )
        return cls(check(result, f"making map {name}"))

    @property
    def layout(self) -> tuple[int, int, int, int]:
        """What two maps must have in common for one to stand in for the other, but for their size."""
        return self.type, self.key_size, self.value_size, self.flags

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, or None."""
        result = library().bpf_map_lookup_elem(self.descriptor, key, self._value)
        if result == -errno.ENOENT:
            return None
        check(result, f"reading map {self.name}")
        return self._value.raw

    def put(self, key: bytes, value: bytes, how: int = ANY) -> None:
        """Set ``key``; KeyError when ``how`` forbids it."""
        result = library().bpf_map_update_elem(ctypes.c_int(self.descriptor), key, value, ctypes.c_uint64(how))
        if result in (-errno.EEXIST, -errno.ENOENT):
            raise KeyError(key)
        if result == -errno.E2BIG:
            raise DataPlaneError(f"map {self.name} is full ({self.max_entries} entries)")
        check(result, f"writing map {self.name}")

    def delete(self, key: bytes) -> bool:
        """Forget ``key``; whether it was there."""
        result = library().bpf_map_delete_elem(self.descriptor, key)
        if result == -errno.ENOENT:
            return False
        check(result, f"deleting from map {self.name}")
        return True

    def put_many(self, items: Mapping[bytes, bytes]) -> None:
        """Set many keys, a few thousand a system call."""
        keys, values = list(items), list(items.values())
        for start in range(0, len(keys), _BATCH):
            part = slice(start, start + _BATCH)
            options = _Batch(sz=ctypes.sizeof(_Batch))
            count = ctypes.c_uint32(len(keys[part]))
            result = library().bpf_map_update_batch(
                self.descriptor,
                b"".join(keys[part]),
                b"".join(values[part]),
                ctypes.byref(count),
                ctypes.byref(options),
            )
            if result == -errno.E2BIG:
                raise DataPlaneError(f"map {self.name} is full ({self.max_entries} entries)")
            check(result, f"writing map {self.name}")

    def first_rows(self, count: int) -> bytes:
        """The first ``count`` values of an array, one after the other; of a per-CPU array, one CPU after the other."""
        keys = ctypes.create_string_buffer(self.key_size * count)
        values = ctypes.create_string_buffer(self._row * count)
        following = ctypes.create_string_buffer(8)
        number = ctypes.c_uint32(count)
        options = _Batch(sz=ctypes.sizeof(_Batch))
        result = library().bpf_map_lookup_batch(
            self.descriptor, None, following, keys, values, ctypes.byref(number), ctypes.byref(options)
        )
        if result in (-errno.EOPNOTSUPP, -ENOTSUPP):  # per-CPU arrays before Linux 5.13
            return b"".join(self.get(index.to_bytes(4, "little")) or b"" for index in range(count))
        if result != -errno.ENOENT:
            check(result, f"reading map {self.name}")
        return values.raw[: self._row * number.value]

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Forget many keys; those that are not there do not matter."""
        for key in keys:
            self.delete(key)

    def keys(self) -> Iterator[bytes]:
        """All keys, one system call each; entries that come and go meanwhile may be missed or repeated."""
        key: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        while True:
            result = library().bpf_map_get_next_key(self.descriptor, key, following)
            if result == -errno.ENOENT:
                return
            check(result, f"listing map {self.name}")
            key = following.raw
            yield key

    @property
    def row(self) -> int:
        """Bytes of one entry's value as it is read: for all CPUs where each has its own."""
        return int(self._row)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries."""
        size, row = self.key_size, self._row
        for keys, values in self.batches():
            for index in range(len(keys) // size):
                yield keys[index * size : (index + 1) * size], values[index * row : (index + 1) * row]

    def batches(self, most: int = _BATCH) -> Iterator[tuple[bytes, bytes]]:
        """All entries, many keys and their values at a time where the kernel offers that for this type of map."""
        cursor: ctypes.Array[ctypes.c_char] | None = None
        keys = ctypes.create_string_buffer(self.key_size * most)
        values = ctypes.create_string_buffer(self._row * most)
        while True:
            following = ctypes.create_string_buffer(max(self.key_size, 8))
            count = ctypes.c_uint32(most)
            options = _Batch(sz=ctypes.sizeof(_Batch))
            result = library().bpf_map_lookup_batch(
                self.descriptor, cursor, following, keys, values, ctypes.byref(count), ctypes.byref(options)
            )
            if result in (-errno.EOPNOTSUPP, -ENOTSUPP):
                yield from self._items_singly()
                return
            if result != -errno.ENOENT:
                check(result, f"listing map {self.name}")
            yield (
                bytes(memoryview(keys)[: count.value * self.key_size]),
                bytes(memoryview(values)[: count.value * self._row]),
            )
            if result == -errno.ENOENT:
                return
            cursor = following

    def _items_singly(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self.keys():
            value = self.get(key)
            if value is not None:
                yield key, value

    def memory(self) -> mmap.mmap:
        """The values of a mappable array, as memory shared with the kernel."""
        size = (
            (self.max_entries * ((self.value_size + 7) // 8 * 8) + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        )
        return mmap.mmap(self.descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
