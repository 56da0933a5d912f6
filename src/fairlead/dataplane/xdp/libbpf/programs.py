# SPDX-License-Identifier: Apache-2.0
"""Programs, and runs of them on a packet (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from fairlead.dataplane.xdp.libbpf.binding import Held, check, library, read_info
from fairlead.errors import DataPlaneError


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


class _SkbContext(ctypes.Structure):
    """``struct __sk_buff`` as far as a test run takes it; what must be zero is not named."""

    _fields_ = (
        ("len", ctypes.c_uint32),
        ("pkt_type", ctypes.c_uint32),
        ("mark", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 180),
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


@dataclass(frozen=True, slots=True)
class Run:
    """What a test run gave: the program's answer, the last packet, and the mean time of a run in ns."""

    verdict: int
    packet: bytes
    nanoseconds: int


class Program(Held):
    """One loaded program."""

    def __init__(self, descriptor: int) -> None:
        """Take over ``descriptor``; it is closed with this object."""
        info = _ProgramInfo()
        read_info(descriptor, info, "a program")
        super().__init__(descriptor)
        self.id: int = info.id
        self.tag = bytes(info.tag).hex()
        self.name = bytes(info.name).decode()
        self.jited_bytes: int = info.jited_len
        self.xlated_bytes: int = info.xlated_len
        self.verified_instructions: int = info.verified_insns

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
        check(library().bpf_prog_test_run_opts(self.descriptor, ctypes.byref(options)), "running a program on a packet")
        return Run(options.retval, out.raw[: options.data_size_out], options.duration)

    def call(self, arguments: bytes) -> bytes:
        """Run a program of type ``syscall`` on these arguments; what it left of them.

        Raises:
            DataPlaneError: The program says that it failed.
        """
        context = ctypes.create_string_buffer(arguments, len(arguments))
        options = _TestRun(sz=ctypes.sizeof(_TestRun), ctx_in=ctypes.addressof(context), ctx_size_in=len(arguments))
        check(library().bpf_prog_test_run_opts(self.descriptor, ctypes.byref(options)), f"running {self.name}")
        if options.retval:
            raise DataPlaneError(f"the program {self.name} failed ({options.retval})")
        return context.raw


def program_by_id(number: int) -> Program:
    """The program with this id."""
    return Program(check(library().bpf_prog_get_fd_by_id(number), f"opening program {number}"))
