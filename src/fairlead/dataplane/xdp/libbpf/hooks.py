# SPDX-License-Identifier: Apache-2.0
"""Where programs are attached: links to XDP and to tcx, and filters of tc."""

from __future__ import annotations

import ctypes
import errno
import os

from fairlead.dataplane.xdp.libbpf.binding import Held, check, library, read_info
from fairlead.dataplane.xdp.libbpf.programs import Program

XDP_NATIVE, XDP_GENERIC = 1 << 2, 1 << 1  # XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE
_ATTACH_XDP, _ATTACH_TCX_INGRESS = 37, 46  # enum bpf_attach_type: BPF_XDP, BPF_TCX_INGRESS (Linux 6.6)
_REPLACE = 1 << 2  # BPF_F_REPLACE
_TC_INGRESS, _TC_EGRESS = 1, 2  # enum bpf_tc_attach_point; both together are the qdisc clsact
_TC_REPLACE = 1  # BPF_TC_F_REPLACE


class _LinkCreate(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 60))


class _LinkUpdate(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("old_prog_fd", ctypes.c_uint32))


class _LinkInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 44),
    )


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


class Link(Held):
    """One attachment of a program to an interface; it ends when neither a descriptor nor a pin is left."""

    @classmethod
    def attach(cls, program: Program, ifindex: int, flags: int) -> Link:
        """Attach ``program``; raises OSError (EBUSY or EEXIST: another program is there; EOPNOTSUPP: not this mode)."""
        return cls(_link(program, ifindex, _ATTACH_XDP, flags))

    @classmethod
    def attach_ingress(cls, program: Program, ifindex: int) -> Link:
        """Let a tc program see what comes in after XDP; raises OSError (EINVAL: this kernel cannot)."""
        return cls(_link(program, ifindex, _ATTACH_TCX_INGRESS, 0))

    def replace(self, new: Program, old: Program) -> None:
        """Swap the program atomically, only if it still is ``old``; raises OSError(EPERM) if it is not."""
        options = _LinkUpdate(sz=ctypes.sizeof(_LinkUpdate), flags=_REPLACE, old_prog_fd=old.descriptor)
        result = library().bpf_link_update(self.descriptor, new.descriptor, ctypes.byref(options))
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def state(self) -> tuple[int, int]:
        """Id of the program and index of the interface (0: the interface is gone)."""
        info = _LinkInfo()
        read_info(self.descriptor, info, "a link")
        return info.prog_id, info.ifindex


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
        result = library().bpf_tc_hook_create(ctypes.byref(hook))
        if result < 0 and result != -errno.EEXIST:
            raise OSError(-result, os.strerror(-result))
        return bool(result == 0)

    @staticmethod
    def destroy(ifindex: int) -> None:
        """Remove the qdisc with every filter that is left in it. One that has gone does not matter."""
        hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=ifindex, attach_point=_TC_INGRESS | _TC_EGRESS)
        library().bpf_tc_hook_destroy(ctypes.byref(hook))

    def attach(self, program: Program, handle: int, priority: int, *, instead: bool = False) -> None:
        """Attach a program, ``instead`` of the one that has this handle and priority; raises OSError."""
        options = _TcOptions(
            sz=ctypes.sizeof(_TcOptions),
            prog_fd=program.descriptor,
            flags=_TC_REPLACE if instead else 0,
            handle=handle,
            priority=priority,
        )
        result = library().bpf_tc_attach(ctypes.byref(self._hook), ctypes.byref(options))
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def detach(self, handle: int, priority: int) -> None:
        """Take away the program with this handle and priority. One that has gone does not matter."""
        options = _TcOptions(sz=ctypes.sizeof(_TcOptions), handle=handle, priority=priority)
        library().bpf_tc_detach(ctypes.byref(self._hook), ctypes.byref(options))


def _link(program: Program, ifindex: int, kind: int, flags: int) -> int:
    options = _LinkCreate(sz=ctypes.sizeof(_LinkCreate), flags=flags)
    result: int = library().bpf_link_create(program.descriptor, ifindex, kind, ctypes.byref(options))
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def attached_program(ifindex: int, flags: int = 0) -> int:
    """Id of the XDP program an interface carries, whoever attached it; 0: none."""
    number = ctypes.c_uint32()
    check(library().bpf_xdp_query_id(ifindex, flags, ctypes.byref(number)), f"asking interface {ifindex}")
    return number.value
