# SPDX-License-Identifier: Apache-2.0
"""The library itself: opening it, what its results mean, and what everything with a descriptor has in common."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Self

from fairlead.errors import DataPlaneError, UnsupportedFeature

ENOTSUPP = 524  # the kernel's own "not supported", unknown to libc

_POINTERS = (
    "bpf_object__open_file",
    "bpf_object__next_map",
    "bpf_object__next_program",
    "bpf_object__btf",
    "bpf_map__initial_value",
    "btf__type_by_id",
)
_STRINGS = ("bpf_map__name", "bpf_program__name", "btf__name_by_offset")


@cache
def library() -> ctypes.CDLL:
    """Open libbpf.

    Raises:
        UnsupportedFeature: It is not installed.
    """
    try:
        opened = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise UnsupportedFeature(
            "XDP forwarding", "libbpf.so.1 is not installed (Debian, Ubuntu: apt-get install libbpf1)"
        ) from error
    for name in _POINTERS:
        getattr(opened, name).restype = ctypes.c_void_p
    for name in _STRINGS:
        getattr(opened, name).restype = ctypes.c_char_p
    opened.libbpf_set_print(None)
    return opened


def trouble() -> str:
    """Why the library cannot be used, in a sentence; empty when it can."""
    try:
        library()
    except UnsupportedFeature as error:
        return error.needs
    return ""


def error_of(what: str, code: int) -> DataPlaneError | UnsupportedFeature:
    """The error for an errno value; ``what`` starts the sentence."""
    if code in (errno.EPERM, errno.EACCES):
        return UnsupportedFeature(
            what, "not permitted; run as root, or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        )
    if code == errno.ENOMEM:
        return DataPlaneError(f"{what}: not enough memory; lower xdp.flow_table, or raise the memory limit of the unit")
    return DataPlaneError(f"{what}: {os.strerror(code)}")


def check(result: int, what: str) -> int:
    """A libbpf result of zero or more, or an error: since 1.0 results are negative errno values."""
    if result < 0:
        raise error_of(what, -result)
    return result


def pointer(value: int | None, what: str) -> ctypes.c_void_p:
    """A pointer that libbpf gave, or an error; ``what`` starts the sentence."""
    if not value:
        raise error_of(what, ctypes.get_errno() or errno.EINVAL)
    return ctypes.c_void_p(value)


@cache
def possible_cpus() -> int:
    """CPUs the kernel may ever have: as many values has an element of a per-CPU map."""
    return check(library().libbpf_num_possible_cpus(), "counting CPUs")


def open_pin(path: Path) -> int:
    """A descriptor of what is pinned at ``path``; raises FileNotFoundError when nothing is."""
    result = library().bpf_obj_get(os.fsencode(path))
    if result == -errno.ENOENT:
        raise FileNotFoundError(path)
    return check(result, f"opening {path}")


def read_info(descriptor: int, info: ctypes.Structure, what: str) -> None:
    """Let the kernel fill in a struct about a descriptor; ``what`` names it in errors."""
    size = ctypes.c_uint32(ctypes.sizeof(info))
    check(library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)), f"reading about {what}")


def mount_bpffs(path: Path) -> None:
    """Mount the BPF file system at ``path``; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(path), b"bpf", ctypes.c_ulong(0), b"mode=0700"):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Held:
    """Something in the kernel that a descriptor holds, which is closed with this object."""

    def __init__(self, descriptor: int) -> None:
        """Take over ``descriptor``."""
        self.descriptor = descriptor

    @classmethod
    def at(cls, path: Path) -> Self:
        """What is pinned at ``path``; FileNotFoundError when nothing is."""
        return cls(open_pin(path))

    def pin(self, path: Path) -> None:
        """Let it outlive its descriptors; the path must not exist."""
        check(library().bpf_obj_pin(self.descriptor, os.fsencode(path)), f"pinning {path}")

    def close(self) -> None:
        """Close the descriptor; what it held lives on while it is pinned or in use."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
