# SPDX-License-Identifier: Apache-2.0
"""libbpf.so.1 by ctypes: objects, maps, programs, links and pins as Python objects.

Invariant: the only file that imports ctypes. Nothing is loaded at import; the library is opened on first use.
Every failure is an error with one sentence that says what to do. Structs: ``linux/bpf.h`` and ``bpf/bpf.h`` 1.1.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from fairlead.errors import DataPlaneError, UnsupportedFeature, VerifierRejected

ANY, NOEXIST, EXIST = 0, 1, 2  # flags of an update
XDP_NATIVE, XDP_GENERIC = 1 << 2, 1 << 1  # XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE
_ATTACH_XDP, _ATTACH_TCX_INGRESS = 37, 46  # enum bpf_attach_type: BPF_XDP, BPF_TCX_INGRESS (Linux 6.6)
_REPLACE = 1 << 2  # BPF_F_REPLACE
_XDP_HAS_FRAGS = 1 << 5  # BPF_F_XDP_HAS_FRAGS
_HASH, _NO_PREALLOC = 1, 1  # BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC
_PER_CPU = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
_TC_INGRESS, _TC_EGRESS = 1, 2  # enum bpf_tc_attach_point; both together are the qdisc clsact
_TC_REPLACE = 1  # BPF_TC_F_REPLACE
_LOG_BYTES = 1 << 20
_BATCH = 4096
_ENOTSUPP = 524  # the kernel's own "not supported", unknown to libc


class _TestRun(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _XdpContext(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint32)
        for name in ("data", "data_end", "data_meta", "ingress_ifindex", "rx_queue_index", "egress_ifindex")
    )


class _LinkCreate(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 60))


class _LinkUpdate(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("old_prog_fd", ctypes.c_uint32))


class _TcHook(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class _TcOptions(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class _SkbContext(ctypes.Structure):
    """``struct __sk_buff`` as far as a test run takes it; what must be zero is not named."""

    _fields_ = (
        ("len", ctypes.c_uint32),
        ("pkt_type", ctypes.c_uint32),
        ("mark", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 180),
    )


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


class _ProgramInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_len", ctypes.c_uint32),
        ("xlated_len", ctypes.c_uint32),
        ("jited_insns", ctypes.c_uint64),
        ("xlated_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("rest", ctypes.c_uint8 * 136),
        ("verified_insns", ctypes.c_uint32),
        ("rest2", ctypes.c_uint8 * 12),
    )


class _LinkInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 44),
    )


_POINTERS = (
    "bpf_object__open_file",
    "bpf_object__next_map",
    "bpf_object__next_program",
    "bpf_object__btf",
    "bpf_map__initial_value",
    "btf__type_by_id",
)
_DEFINITION = ("type", "key_size", "value_size", "map_flags", "max_entries")
_STRINGS = ("bpf_map__name", "bpf_program__name", "btf__name_by_offset")


@cache
def _library() -> ctypes.CDLL:
    """Open libbpf.

    Raises:
        UnsupportedFeature: It is not installed.
    """
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise UnsupportedFeature(
            "XDP forwarding", "libbpf.so.1 is not installed (Debian, Ubuntu: apt-get install libbpf1)"
        ) from error
    for name in _POINTERS:
        getattr(library, name).restype = ctypes.c_void_p
    for name in _STRINGS:
        getattr(library, name).restype = ctypes.c_char_p
    library.libbpf_set_print(None)
    return library


def trouble() -> str:
    """Why the library cannot be used, in a sentence; empty when it can."""
    try:
        _library()
    except UnsupportedFeature as error:
        return error.needs
    return ""


def _fail(what: str, code: int) -> DataPlaneError | UnsupportedFeature:
    """The error for an errno value; ``what`` starts the sentence."""
    if code in (errno.EPERM, errno.EACCES):
        return UnsupportedFeature(
            what, "not permitted; run as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        )
    if code == errno.ENOMEM:
        return DataPlaneError(f"{what}: not enough memory; lower xdp.flow_table, or raise the memory limit of the unit")
    return DataPlaneError(f"{what}: {os.strerror(code)}")


def _check(result: int, what: str) -> int:
    """A libbpf result of zero or more, or an error: since 1.0 results are negative errno values."""
    if result < 0:
        raise _fail(what, -result)
    return result


def _pointer(value: int | None, what: str) -> ctypes.c_void_p:
    if not value:
        raise _fail(what, ctypes.get_errno() or errno.EINVAL)
    return ctypes.c_void_p(value)


@cache
def possible_cpus() -> int:
    """CPUs the kernel may ever have: as many values has an element of a per-CPU map."""
    return _check(_library().libbpf_num_possible_cpus(), "counting CPUs")


def pin(descriptor: int, path: Path) -> None:
    """Pin a map, program or link; the path must not exist."""
    _check(_library().bpf_obj_pin(descriptor, os.fsencode(path)), f"pinning {path}")


def open_pin(path: Path) -> int:
    """A descriptor of what is pinned at ``path``; raises FileNotFoundError when nothing is."""
    result = _library().bpf_obj_get(os.fsencode(path))
    if result == -errno.ENOENT:
        raise FileNotFoundError(path)
    return _check(result, f"opening {path}")


def _info(descriptor: int, info: ctypes.Structure, what: str) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _check(
        _library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)), f"reading about {what}"
    )


def mount_bpffs(path: Path) -> None:
    """Mount the BPF file system at ``path``; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(path), b"bpf", ctypes.c_ulong(0), b"mode=0700"):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def map_definitions(path: Path) -> dict[str, tuple[tuple[int, int, int, int], int]]:
    """The maps that an object file defines: ``BpfMap.layout`` and size, by name.

    Raises:
        UnsupportedFeature: The library or the file is missing.
        DataPlaneError: The file cannot be read.
    """
    library = _library()
    opened = _open(path)
    try:
        found = {}
        item = None
        while item := library.bpf_object__next_map(opened, ctypes.c_void_p(item)):
            raw = ctypes.c_void_p(item)
            name: str = library.bpf_map__name(raw).decode()
            if "." not in name:
                numbers = (getattr(library, f"bpf_map__{what}")(raw) for what in _DEFINITION)
                kind, key, value, flags, size = numbers
                found[name] = ((kind, key, value, flags), size)
        return found
    finally:
        library.bpf_object__close(opened)


def _open(path: Path) -> ctypes.c_void_p:
    if not path.exists():
        raise UnsupportedFeature(
            "XDP forwarding",
            f"the compiled program {path.name} is missing: install clang and libbpf-dev, then install fairlead again",
        )
    return _pointer(_library().bpf_object__open_file(os.fsencode(path), None), f"reading {path}")


class BpfMap:
    """One map. Keys and values are bytes; values of per-CPU maps are the CPUs' values one after the other."""

    def __init__(self, descriptor: int) -> None:
        """Take over ``descriptor``; it is closed with this object."""
        info = _MapInfo()
        _info(descriptor, info, "a map")
        self.descriptor = descriptor
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
    def at(cls, path: Path) -> BpfMap:
        """The map pinned at ``path``; FileNotFoundError when there is none."""
        return cls(open_pin(path))

    @classmethod
    def hash(cls, name: str, key_size: int, value_size: int, max_entries: int) -> BpfMap:
        """A new hash map that no program uses; memory is taken as entries come."""
        options = _MapCreate(sz=ctypes.sizeof(_MapCreate), map_flags=_NO_PREALLOC)
        result = _library().bpf_map_create(
            _HASH, name.encode(), key_size, value_size, max_entries, ctypes.byref(options)
        )
        return cls(_check(result, f"making map {name}"))

    def pin(self, path: Path) -> None:
        """Let the map outlive its descriptors."""
        pin(self.descriptor, path)

    @property
    def layout(self) -> tuple[int, int, int, int]:
        """What two maps must have in common for one to stand in for the other, but for their size."""
        return self.type, self.key_size, self.value_size, self.flags

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, or None."""
        result = _library().bpf_map_lookup_elem(self.descriptor, key, self._value)
        if result == -errno.ENOENT:
            return None
        _check(result, f"reading map {self.name}")
        return self._value.raw

    def put(self, key: bytes, value: bytes, how: int = ANY) -> None:
        """Set ``key``; KeyError when ``how`` forbids it."""
        result = _library().bpf_map_update_elem(ctypes.c_int(self.descriptor), key, value, ctypes.c_uint64(how))
        if result in (-errno.EEXIST, -errno.ENOENT):
            raise KeyError(key)
        if result == -errno.E2BIG:
            raise DataPlaneError(f"map {self.name} is full ({self.max_entries} entries)")
        _check(result, f"writing map {self.name}")

    def delete(self, key: bytes) -> bool:
        """Forget ``key``; whether it was there."""
        result = _library().bpf_map_delete_elem(self.descriptor, key)
        if result == -errno.ENOENT:
            return False
        _check(result, f"deleting from map {self.name}")
        return True

    def put_many(self, items: Mapping[bytes, bytes]) -> None:
        """Set many keys, a few thousand a system call."""
        pairs = list(items.items())
        for start in range(0, len(pairs), _BATCH):
            part = pairs[start : start + _BATCH]
            options = _Batch(sz=ctypes.sizeof(_Batch))
            count = ctypes.c_uint32(len(part))
            result = _library().bpf_map_update_batch(
                self.descriptor,
                b"".join(key for key, _ in part),
                b"".join(value for _, value in part),
                ctypes.byref(count),
                ctypes.byref(options),
            )
            if result == -errno.E2BIG:
                raise DataPlaneError(f"map {self.name} is full ({self.max_entries} entries)")
            _check(result, f"writing map {self.name}")

    def first_rows(self, count: int) -> bytes:
        """The first ``count`` values of an array, one after the other; of a per-CPU array, one CPU after the other."""
        keys = ctypes.create_string_buffer(self.key_size * count)
        values = ctypes.create_string_buffer(self._row * count)
        following = ctypes.create_string_buffer(8)
        number = ctypes.c_uint32(count)
        options = _Batch(sz=ctypes.sizeof(_Batch))
        result = _library().bpf_map_lookup_batch(
            self.descriptor, None, following, keys, values, ctypes.byref(number), ctypes.byref(options)
        )
        if result in (-errno.EOPNOTSUPP, -_ENOTSUPP):  # per-CPU arrays before Linux 5.13
            return b"".join(self.get(index.to_bytes(4, "little")) or b"" for index in range(count))
        if result != -errno.ENOENT:
            _check(result, f"reading map {self.name}")
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
            result = _library().bpf_map_get_next_key(self.descriptor, key, following)
            if result == -errno.ENOENT:
                return
            _check(result, f"listing map {self.name}")
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
            result = _library().bpf_map_lookup_batch(
                self.descriptor, cursor, following, keys, values, ctypes.byref(count), ctypes.byref(options)
            )
            if result in (-errno.EOPNOTSUPP, -_ENOTSUPP):
                yield from self._items_singly()
                return
            if result != -errno.ENOENT:
                _check(result, f"listing map {self.name}")
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

    def close(self) -> None:
        """Close the descriptor; the map lives on while it is pinned or a program uses it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(frozen=True, slots=True)
class Run:
    """What a test run gave: the program's answer, the last packet, and the mean time of a run in ns."""

    verdict: int
    packet: bytes
    nanoseconds: int


class Program:
    """One loaded program."""

    def __init__(self, descriptor: int) -> None:
        """Take over ``descriptor``; it is closed with this object."""
        info = _ProgramInfo()
        _info(descriptor, info, "a program")
        self.descriptor = descriptor
        self.id: int = info.id
        self.tag = bytes(info.tag).hex()
        self.name = bytes(info.name).decode()
        self.jited_bytes: int = info.jited_len
        self.xlated_bytes: int = info.xlated_len
        self.verified_instructions: int = info.verified_insns

    @classmethod
    def at(cls, path: Path) -> Program:
        """The program pinned at ``path``; FileNotFoundError when there is none."""
        return cls(open_pin(path))

    def pin(self, path: Path) -> None:
        """Let the program outlive its descriptors."""
        pin(self.descriptor, path)

    def run(self, packet: bytes, *, ifindex: int = 0, repeat: int = 1, room: int = 512) -> Run:
        """Run an XDP program on a frame (BPF_PROG_TEST_RUN).

        Args:
            packet: The frame, at least 14 bytes.
            ifindex: The interface it seems to come in by, in this network namespace; it must carry an XDP program.
                0: the loopback interface.
            repeat: How often; the packet is not restored in between.
            room: How much the frame may grow.
        """
        context = _XdpContext(data_end=len(packet), ingress_ifindex=ifindex)
        return self._run(packet, context if ifindex else None, repeat, room)

    def run_marked(self, packet: bytes, mark: int, *, room: int = 512) -> Run:
        """Run a tc program on a frame with this mark."""
        return self._run(packet, _SkbContext(mark=mark), 1, room)

    def _run(self, packet: bytes, context: ctypes.Structure | None, repeat: int, room: int) -> Run:
        out = ctypes.create_string_buffer(len(packet) + room)
        options = _TestRun(
            sz=ctypes.sizeof(_TestRun),
            data_in=ctypes.cast(ctypes.c_char_p(packet), ctypes.c_void_p).value,
            data_size_in=len(packet),
            data_out=ctypes.addressof(out),
            data_size_out=len(out),
            repeat=repeat,
        )
        if context is not None:
            options.ctx_in = ctypes.addressof(context)
            options.ctx_size_in = ctypes.sizeof(context)
        _check(
            _library().bpf_prog_test_run_opts(self.descriptor, ctypes.byref(options)), "running a program on a packet"
        )
        return Run(options.retval, out.raw[: options.data_size_out], options.duration)

    def call(self, arguments: bytes) -> bytes:
        """Run a program of type ``syscall`` on these arguments; what it left of them.

        Raises:
            DataPlaneError: The program says that it failed.
        """
        context = ctypes.create_string_buffer(arguments, len(arguments))
        options = _TestRun(sz=ctypes.sizeof(_TestRun), ctx_in=ctypes.addressof(context), ctx_size_in=len(arguments))
        _check(_library().bpf_prog_test_run_opts(self.descriptor, ctypes.byref(options)), f"running {self.name}")
        if options.retval:
            raise DataPlaneError(f"the program {self.name} failed ({options.retval})")
        return context.raw

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Link:
    """One attachment of a program to an interface; it ends when neither a descriptor nor a pin is left."""

    def __init__(self, descriptor: int) -> None:
        """Take over ``descriptor``; it is closed with this object."""
        self.descriptor = descriptor

    @classmethod
    def attach(cls, program: Program, ifindex: int, flags: int) -> Link:
        """Attach ``program``; raises OSError (EBUSY or EEXIST: another program is there; EOPNOTSUPP: not this mode)."""
        return cls(_link(program, ifindex, _ATTACH_XDP, flags))

    @classmethod
    def attach_ingress(cls, program: Program, ifindex: int) -> Link:
        """Let a tc program see what comes in after XDP; raises OSError (EINVAL: this kernel cannot)."""
        return cls(_link(program, ifindex, _ATTACH_TCX_INGRESS, 0))

    @classmethod
    def at(cls, path: Path) -> Link:
        """The link pinned at ``path``; FileNotFoundError when there is none."""
        return cls(open_pin(path))

    def pin(self, path: Path) -> None:
        """Let the program stay attached when nobody holds the link."""
        pin(self.descriptor, path)

    def replace(self, new: Program, old: Program) -> None:
        """Swap the program atomically, only if it still is ``old``; raises OSError(EPERM) if it is not."""
        options = _LinkUpdate(sz=ctypes.sizeof(_LinkUpdate), flags=_REPLACE, old_prog_fd=old.descriptor)
        result = _library().bpf_link_update(self.descriptor, new.descriptor, ctypes.byref(options))
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def state(self) -> tuple[int, int]:
        """Id of the program and index of the interface (0: the interface is gone)."""
        info = _LinkInfo()
        _info(self.descriptor, info, "a link")
        return info.prog_id, info.ifindex

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class TcHook:
    """Where tc programs see what leaves (``egress``) or enters by an interface, behind the qdisc clsact."""

    def __init__(self, ifindex: int, *, egress: bool) -> None:
        self._hook = _TcHook(
            sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=_TC_EGRESS if egress else _TC_INGRESS
        )

    @staticmethod
    def create(ifindex: int) -> bool:
        """Have the qdisc; whether it was not there before. Raises OSError."""
        hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=_TC_INGRESS | _TC_EGRESS)
        result = _library().bpf_tc_hook_create(ctypes.byref(hook))
        if result < 0 and result != -errno.EEXIST:
            raise OSError(-result, os.strerror(-result))
        return bool(result == 0)

    @staticmethod
    def destroy(ifindex: int) -> None:
        """Remove the qdisc with every filter that is left in it. One that has gone does not matter."""
        hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=_TC_INGRESS | _TC_EGRESS)
        _library().bpf_tc_hook_destroy(ctypes.byref(hook))

    def attach(self, program: Program, handle: int, priority: int, *, instead: bool = False) -> None:
        """Attach a program, ``instead`` of the one that has this handle and priority; raises OSError."""
        options = _TcOptions(
            sz=ctypes.sizeof(_TcOptions),
            prog_fd=program.descriptor,
            flags=_TC_REPLACE if instead else 0,
            handle=handle,
            priority=priority,
        )
        result = _library().bpf_tc_attach(ctypes.byref(self._hook), ctypes.byref(options))
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def detach(self, handle: int, priority: int) -> None:
        """Take away the program with this handle and priority. One that has gone does not matter."""
        options = _TcOptions(sz=ctypes.sizeof(_TcOptions), handle=handle, priority=priority)
        _library().bpf_tc_detach(ctypes.byref(self._hook), ctypes.byref(options))


def _link(program: Program, ifindex: int, kind: int, flags: int) -> int:
    options = _LinkCreate(sz=ctypes.sizeof(_LinkCreate), flags=flags)
    result: int = _library().bpf_link_create(program.descriptor, ifindex, kind, ctypes.byref(options))
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def program_by_id(number: int) -> Program:
    """The program with this id."""
    return Program(_check(_library().bpf_prog_get_fd_by_id(number), f"opening program {number}"))


def attached_program(ifindex: int, flags: int = 0) -> int:
    """Id of the XDP program an interface carries, whoever attached it; 0: none."""
    number = ctypes.c_uint32()
    _check(_library().bpf_xdp_query_id(ifindex, flags, ctypes.byref(number)), f"asking interface {ifindex}")
    return number.value


class LoadedObject:
    """A compiled object file, loaded into the kernel: its maps and programs by name.

    Args:
        path: The object file.
        constants: Values of its ``const volatile`` variables, by name.
        max_entries: Sizes of maps, by name.
        reuse: Maps to use instead of making them, by name; their layout must fit.
        multi_buffer: Let packets have more than one buffer (jumbo frames).

    Raises:
        UnsupportedFeature: The kernel, the library or a capability is missing.
        VerifierRejected: The kernel does not accept the program.
        DataPlaneError: The object cannot be read, or does not fit the maps.
    """

    def __init__(
        self,
        path: Path,
        *,
        constants: Mapping[str, int] | None = None,
        max_entries: Mapping[str, int] | None = None,
        reuse: Mapping[str, BpfMap] | None = None,
        multi_buffer: bool = False,
    ) -> None:
        library = _library()
        self.path = path
        self._object = _open(path)
        self.maps: dict[str, BpfMap] = {}
        self.sections: dict[str, BpfMap] = {}  # of constants and global variables: nothing to share or to pin
        self.programs: dict[str, Program] = {}
        try:
            maps = dict(self._raw("bpf_object__next_map", "bpf_map__name"))
            for name, size in (max_entries or {}).items():
                _check(library.bpf_map__set_max_entries(maps[name], size), f"sizing map {name}")
            for name, shared in (reuse or {}).items():
                self._reuse(maps[name], shared, name)
            self._set_constants(maps, constants or {})
            self._load(multi_buffer=multi_buffer)
            for name, raw in maps.items():
                kind = self.sections if "." in name else self.maps
                kind[name] = BpfMap(os.dup(library.bpf_map__fd(raw)))
        except BaseException:
            self.close()
            raise

    def _reuse(self, raw: ctypes.c_void_p, shared: BpfMap, name: str) -> None:
        library = _library()
        wanted = (library.bpf_map__type(raw), library.bpf_map__key_size(raw), library.bpf_map__value_size(raw))
        if wanted != (shared.type, shared.key_size, shared.value_size):
            raise DataPlaneError(
                f"{self.path.name}: map {name} in the kernel is laid out otherwise than this program's"
            )
        _check(library.bpf_map__reuse_fd(raw, shared.descriptor), f"reusing map {name}")

    def _raw(self, following: str, name_of: str) -> Iterator[tuple[str, ctypes.c_void_p]]:
        library = _library()
        item = None
        while item := getattr(library, following)(self._object, ctypes.c_void_p(item)):
            name: bytes = getattr(library, name_of)(ctypes.c_void_p(item))
            yield name.decode(), ctypes.c_void_p(item)

    def _set_constants(self, maps: Mapping[str, ctypes.c_void_p], constants: Mapping[str, int]) -> None:
        if not constants:
            return
        library = _library()
        raw = next(item for name, item in maps.items() if name.endswith(".rodata"))
        size = ctypes.c_size_t()
        memory = _pointer(library.bpf_map__initial_value(raw, ctypes.byref(size)), "finding the constants")
        places = self._constants()
        for name, value in constants.items():
            offset, length = places[name]
            assert memory.value is not None
            assert offset + length <= size.value
            ctypes.memmove(memory.value + offset, value.to_bytes(length, "little"), length)

    def _constants(self) -> dict[str, tuple[int, int]]:
        """Offset and size of every variable in ``.rodata``, by its BTF (Documentation/bpf/btf.rst)."""
        library = _library()
        btf = _pointer(library.bpf_object__btf(self._object), f"reading the type information of {self.path}")
        section = library.btf__find_by_name_kind(btf, b".rodata", 15)  # BTF_KIND_DATASEC
        _check(section, f"finding the constants of {self.path}")
        head = (ctypes.c_uint32 * 3).from_address(library.btf__type_by_id(btf, section))
        count = head[1] & 0xFFFF
        rows = (ctypes.c_uint32 * (3 * count)).from_address(ctypes.addressof(head) + ctypes.sizeof(head))
        places = {}
        for index in range(count):
            kind, offset, length = rows[3 * index : 3 * index + 3]
            variable = (ctypes.c_uint32 * 3).from_address(library.btf__type_by_id(btf, kind))
            name: bytes = library.btf__name_by_offset(btf, variable[0])
            places[name.decode()] = (offset, length)
        return places

    def _load(self, *, multi_buffer: bool) -> None:
        library = _library()
        programs = dict(self._raw("bpf_object__next_program", "bpf_program__name"))
        log = ctypes.create_string_buffer(_LOG_BYTES)
        for raw in programs.values():
            library.bpf_program__set_log_buf(raw, log, ctypes.c_size_t(len(log)))
            if multi_buffer:
                _check(library.bpf_program__set_flags(raw, _XDP_HAS_FRAGS), "allowing jumbo frames")
        result = library.bpf_object__load(self._object)
        if result < 0:
            raise self._load_error(-result, log.value.decode(errors="replace"))
        for name, raw in programs.items():
            self.programs[name] = Program(os.dup(library.bpf_program__fd(raw)))

    def _load_error(self, code: int, log: str) -> Exception:
        if "processed " in log:
            return VerifierRejected(self.path.name, log)
        if code in (errno.EINVAL, _ENOTSUPP) and not log:
            return UnsupportedFeature(
                "XDP forwarding", f"this kernel ({os.uname().release}) is too old for it; it needs Linux 5.18 or later"
            )
        return _fail(f"loading {self.path.name} into the kernel", code)

    def close(self) -> None:
        """Let go of everything; what is pinned or attached stays."""
        for item in (*self.maps.values(), *self.sections.values()):
            item.close()
        for program in self.programs.values():
            program.close()
        if self._object:
            _library().bpf_object__close(self._object)
            self._object = ctypes.c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
