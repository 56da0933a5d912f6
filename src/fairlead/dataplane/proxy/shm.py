# SPDX-License-Identifier: Apache-2.0
"""The memory that all workers and the agent share: counters by worker, totals over all of them.

Invariants: the agent writes only the header, its own notes in it, and the rows of an id that no worker holds;
it reads only rows of workers that ever ran, because reading a hole of a memfd through a mapping fills it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from fairlead.dataplane.base import ServerCounters, ServiceCounters
from fairlead.dataplane.proxy import abi
from fairlead.errors import ContractViolation
from fairlead.model.reasons import RejectReason
from fairlead.model.views import WorkerView

_NOTES = abi.SHM.offset("reserved")  # the agent's own: u64 each
_ROWS_USED = 3  # note: bit N set when row N was ever used
_DEAD = 0x7FFFFFFF  # no process has this id: above the kernel's PID_MAX_LIMIT
_ROWS = abi.SHM.offset("worker")
_ROW_SERVICES = abi.WORKER_ROW.offset("service")
_ROW_SERVERS = abi.WORKER_ROW.offset("server")
_SHARED_SERVICES = abi.SHM.offset("service")
_SHARED_SERVERS = abi.SHM.offset("server")
_ACTIVE = abi.SHARED_SERVER  # one u32, first in both shared structs
_HEAD = abi.Layout("head", magic="I", abi="I", size="Q")
_NOTE = abi.Layout("note", value="Q")
_PID = abi.Layout("pid", value="I")
_COUNTS = abi.Layout("counts", values="4Q")
_SERVER_COUNTS = abi.Layout("server_counts", values="4Q", active="I", consecutive_failures="I")
_SERVICE_COUNTS = abi.Layout("service_counts", values="3Q", skip="8x", rejected=f"{abi.REASONS}Q")


@dataclass(frozen=True, slots=True)
class WorkerHead:
    """The first fields of a worker's row."""

    pid: int
    accepting: bool
    active: int
    descriptors_used: int
    descriptors_limit: int
    accept_pauses: int


class SharedMemory:
    """The mapped file.

    Args:
        fd: The memfd; owned from now on.

    Raises:
        ContractViolation: The file is not of this ABI.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        head = _HEAD.unpack(os.pread(fd, _HEAD.size, 0).ljust(_HEAD.size, b"\0"))
        if head != (abi.SHM_MAGIC, abi.ABI_VERSION, abi.SHM.size) or os.fstat(fd).st_size != abi.SHM.size:
            os.close(fd)
            raise ContractViolation("the shared memory of the workers is not of this version")
        self._map = mmap.mmap(fd, abi.SHM.size)
        self._rows: tuple[int, ...] = ()
        self.use_row(None)

    @classmethod
    def create(cls) -> SharedMemory:
        """A new one: sparse, so that 350 MB of address space cost only the rows in use."""
        fd = os.memfd_create("fairlead", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, abi.SHM.size)
        os.pwrite(fd, _HEAD.pack(abi.SHM_MAGIC, abi.ABI_VERSION, abi.SHM.size), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd)

    def close(self) -> None:
        """Unmap and close; the workers keep theirs."""
        self._map.close()
        os.close(self.fd)

    def same_file(self, fd: int) -> bool:
        """Whether ``fd`` is this memory."""
        return os.path.samestat(os.fstat(fd), os.fstat(self.fd))

    def note(self, index: int) -> int:
        """One of the agent's numbers that outlive it, 0 at first."""
        return int(_NOTE.unpack(self._map, _NOTES + 8 * index)[0])

    def set_note(self, index: int, value: int) -> None:
        """Change one of the agent's numbers."""
        at = _NOTES + 8 * index
        self._map[at : at + 8] = _NOTE.pack(value)

    def use_row(self, slot: int | None) -> None:
        """A worker gets row ``slot``: it counts in totals from now on, also when it ends."""
        used = self.note(_ROWS_USED)
        if slot is not None:
            used |= 1 << slot
            self.set_note(_ROWS_USED, used)
        self._rows = tuple(row for row in range(abi.MAX_WORKERS) if used >> row & 1)

    def rows(self) -> tuple[int, ...]:
        """Slots of all rows ever used."""
        return self._rows

    def worker(self, slot: int) -> WorkerHead:
        """The head of row ``slot``."""
        pid, accepting, active, used, limit, _, pauses, *_ = abi.WORKER_ROW.unpack(self._map, _row(slot))
        return WorkerHead(pid, bool(accepting), active, used, limit, pauses)

    def bury(self, slot: int) -> None:
        """The process that had row ``slot`` is dead for certain: the next worker repairs the row.

        Otherwise a worker takes a process of that id for its predecessor, also one that nobody reaped, or another.
        """
        self._map[_row(slot) : _row(slot) + 4] = _PID.pack(_DEAD)

    def worker_view(self, slot: int, pid: int, *, draining: bool) -> WorkerView:
        """The head of row ``slot`` as shown to people."""
        head = self.worker(slot)
        return WorkerView(
            slot=slot,
            pid=pid,
            active=head.active,
            accepting=head.accepting and not draining,
            descriptors_used=head.descriptors_used,
            descriptors_limit=head.descriptors_limit,
            accept_pauses_total=head.accept_pauses,
        )

    def server(self, number: int) -> ServerCounters:
        """Totals of the server with id ``number`` over all rows."""
        connections = failures = bytes_in = bytes_out = 0
        streaks: dict[int, int] = {}
        at = _ROW_SERVERS + abi.SERVER_ROW.size * number
        for slot in self._rows:
            c, f, i, o, _, streak = _SERVER_COUNTS.unpack(self._map, _row(slot) + at)
            connections += c
            failures += f
            bytes_in += i
            bytes_out += o
            if streak:
                streaks[slot] = streak
        (active,) = _ACTIVE.unpack(self._map, _SHARED_SERVERS + abi.SHARED_SERVER.size * number)
        return ServerCounters(active, connections, failures, bytes_in, bytes_out, streaks)

    def service(self, number: int) -> ServiceCounters:
        """Totals of the service with id ``number`` over all rows."""
        sums = [0] * (3 + abi.REASONS)
        at = _ROW_SERVICES + abi.SERVICE_ROW.size * number
        for slot in self._rows:
            values = _SERVICE_COUNTS.unpack(self._map, _row(slot) + at)
            sums = [a + b for a, b in zip(sums, values, strict=True)]
        active, _, queued, _ = abi.SHARED_SERVICE.unpack(self._map, _SHARED_SERVICES + abi.SHARED_SERVICE.size * number)
        connections, bytes_in, bytes_out, *rejected = sums
        return ServiceCounters(
            active, connections, bytes_in, bytes_out, {reason: rejected[reason] for reason in RejectReason}, queued
        )

    def forget_server(self, number: int) -> None:
        """Zero the counts of an id that is given to another server; `active` figures belong to the workers."""
        at = _ROW_SERVERS + abi.SERVER_ROW.size * number
        self._zero(at, _COUNTS.size)
        self._zero(at + abi.SERVER_ROW.offset("consecutive_failures"), 4)

    def forget_service(self, number: int) -> None:
        """Zero the counts of an id that is given to another service."""
        at = _ROW_SERVICES + abi.SERVICE_ROW.size * number
        self._zero(at, abi.SERVICE_ROW.offset("active"))
        self._zero(at + abi.SERVICE_ROW.offset("rejected"), 8 * abi.REASONS)

    def _zero(self, at: int, size: int) -> None:
        for slot in self._rows:
            start = _row(slot) + at
            self._map[start : start + size] = bytes(size)


def _row(slot: int) -> int:
    return _ROWS + abi.WORKER_ROW.size * slot
