# SPDX-License-Identifier: Apache-2.0
"""Compiled object files: what they define, and loading them into the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from fairlead.dataplane.xdp.libbpf.binding import ENOTSUPP, check, error_of, library, pointer
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.programs import Program
from fairlead.errors import DataPlaneError, UnsupportedFeature, VerifierRejected

_DEFINITION = ("type", "key_size", "value_size", "map_flags", "max_entries")
_XDP_HAS_FRAGS = 1 << 5  # BPF_F_XDP_HAS_FRAGS
_LOG_BYTES = 1 << 20


def map_definitions(path: Path) -> dict[str, tuple[tuple[int, int, int, int], int]]:
    """The maps that an object file defines: ``BpfMap.layout`` and size, by name.

    Raises:
        UnsupportedFeature: The library or the file is missing.
        DataPlaneError: The file cannot be read.
    """
    lib = library()
    opened = _open(path)
    try:
        found = {}
        item = None
        while item := lib.bpf_object__next_map(opened, ctypes.c_void_p(item)):
            raw = ctypes.c_void_p(item)
            name: str = lib.bpf_map__name(raw).decode()
            if "." not in name:
                numbers = (getattr(lib, f"bpf_map__{what}")(raw) for what in _DEFINITION)
                kind, key, value, flags, size = numbers
                found[name] = ((kind, key, value, flags), size)
        return found
    finally:
        lib.bpf_object__close(opened)


def _open(path: Path) -> ctypes.c_void_p:
    if not path.exists():
        raise UnsupportedFeature(
            "XDP forwarding",
            f"the compiled program {path.name} is missing: install clang and libbpf-dev, then install fairlead again",
        )
    return pointer(library().bpf_object__open_file(os.fsencode(path), None), f"reading {path}")


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
        lib = library()
        self.path = path
        self._object = _open(path)
        self.maps: dict[str, BpfMap] = {}
        self.sections: dict[str, BpfMap] = {}  # of constants and global variables: nothing to share or to pin
        self.programs: dict[str, Program] = {}
        try:
            maps = dict(self._raw("bpf_object__next_map", "bpf_map__name"))
            for name, size in (max_entries or {}).items():
                check(lib.bpf_map__set_max_entries(maps[name], size), f"sizing map {name}")
            for name, shared in (reuse or {}).items():
                self._reuse(maps[name], shared, name)
            self._set_constants(maps, constants or {})
            self._load(multi_buffer=multi_buffer)
            for name, raw in maps.items():
                kind = self.sections if "." in name else self.maps
                kind[name] = BpfMap(os.dup(lib.bpf_map__fd(raw)))
        except BaseException:
            self.close()
            raise

    def _reuse(self, raw: ctypes.c_void_p, shared: BpfMap, name: str) -> None:
        lib = library()
        wanted = (lib.bpf_map__type(raw), lib.bpf_map__key_size(raw), lib.bpf_map__value_size(raw))
        if wanted != (shared.type, shared.key_size, shared.value_size):
            raise DataPlaneError(
                f"{self.path.name}: map {name} in the kernel is laid out otherwise than this program's"
            )
        check(lib.bpf_map__reuse_fd(raw, shared.descriptor), f"reusing map {name}")

    def _raw(self, following: str, name_of: str) -> Iterator[tuple[str, ctypes.c_void_p]]:
        lib = library()
        item = None
        while item := getattr(lib, following)(self._object, ctypes.c_void_p(item)):
            name: bytes = getattr(lib, name_of)(ctypes.c_void_p(item))
            yield name.decode(), ctypes.c_void_p(item)

    def _set_constants(self, maps: Mapping[str, ctypes.c_void_p], constants: Mapping[str, int]) -> None:
        if not constants:
            return
        lib = library()
        raw = next(item for name, item in maps.items() if name.endswith(".rodata"))
        size = ctypes.c_size_t()
        memory = pointer(lib.bpf_map__initial_value(raw, ctypes.byref(size)), "finding the constants")
        places = self._constants()
        for name, value in constants.items():
            offset, length = places[name]
            assert memory.value is not None
            assert offset + length <= size.value
            ctypes.memmove(memory.value + offset, value.to_bytes(length, "little"), length)

    def _constants(self) -> dict[str, tuple[int, int]]:
        """Offset and size of every variable in ``.rodata``, by its BTF (Documentation/bpf/btf.rst)."""
        lib = library()
        btf = pointer(lib.bpf_object__btf(self._object), f"reading the type information of {self.path}")
        section = lib.btf__find_by_name_kind(btf, b".rodata", 15)  # BTF_KIND_DATASEC
        check(section, f"finding the constants of {self.path}")
        head = (ctypes.c_uint32 * 3).from_address(lib.btf__type_by_id(btf, section))
        count = head[1] & 0xFFFF
        rows = (ctypes.c_uint32 * (3 * count)).from_address(ctypes.addressof(head) + ctypes.sizeof(head))
        places = {}
        for index in range(count):
            kind, offset, length = rows[3 * index : 3 * index + 3]
            variable = (ctypes.c_uint32 * 3).from_address(lib.btf__type_by_id(btf, kind))
            name: bytes = lib.btf__name_by_offset(btf, variable[0])
            places[name.decode()] = (offset, length)
        return places

    def _load(self, *, multi_buffer: bool) -> None:
        lib = library()
        programs = dict(self._raw("bpf_object__next_program", "bpf_program__name"))
        log = ctypes.create_string_buffer(_LOG_BYTES)
        for raw in programs.values():
            lib.bpf_program__set_log_buf(raw, log, ctypes.c_size_t(len(log)))
            if multi_buffer:
                check(lib.bpf_program__set_flags(raw, _XDP_HAS_FRAGS), "allowing jumbo frames")
        result = lib.bpf_object__load(self._object)
        if result < 0:
            raise self._load_error(-result, log.value.decode(errors="replace"))
        for name, raw in programs.items():
            self.programs[name] = Program(os.dup(lib.bpf_program__fd(raw)))

    def _load_error(self, code: int, log: str) -> Exception:
        if "processed " in log:
            return VerifierRejected(self.path.name, log)
        if code in (errno.EINVAL, ENOTSUPP) and not log:
            return UnsupportedFeature(
                "XDP forwarding", f"this kernel ({os.uname().release}) is too old for it; it needs Linux 5.18 or later"
            )
        return error_of(f"loading {self.path.name} into the kernel", code)

    def close(self) -> None:
        """Let go of everything; what is pinned or attached stays."""
        for item in (*self.maps.values(), *self.sections.values()):
            item.close()
        for program in self.programs.values():
            program.close()
        if self._object:
            library().bpf_object__close(self._object)
            self._object = ctypes.c_void_p()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
