# SPDX-License-Identifier: Apache-2.0
"""One control connection to one worker: requests in order, answers by sequence number, descriptors beside them.

Invariant: a worker counts as unresponsive only when it owes an answer and nothing at all came from it for
``timeout_s``; a long queue of requests that it works off is no reason to give up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.dataplane.proxy import abi, codec
from fairlead.errors import FairleadError

_SEND_BUFFER = 1 << 20  # some tables in flight; the kernel caps it at net.core.wmem_max
_PACKETS_PER_WAKE = 128  # a dump of 13000 records must not hold the event loop
_FDS_PER_PACKET = 4
_RETRY_S = 0.005
_PATH_MAX = 107  # sockaddr_un, unix(7)


class WorkerLost(FairleadError):
    """The worker ended, closed its control socket, or did not answer in time."""


class WorkerSilent(WorkerLost):
    """The worker did not answer in time."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request: what stands behind the header, and the descriptors that go with it."""

    type: abi.Type
    body: bytes = b""
    fds: tuple[int, ...] = ()


@dataclass(slots=True)
class Reply:
    """All records of an answer (whole packets, header included), the descriptors of each, and how it ended."""

    records: list[bytes] = field(default_factory=list)
    fds: dict[int, list[int]] = field(default_factory=dict)  # index of the record -> descriptors, owned by the reader
    done: codec.Done = field(default_factory=lambda: codec.Done(0, 0, ""))


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[Reply]
    reply: Reply
    fds: bool


@dataclass(slots=True)
class _Outgoing:
    header: bytes
    body: bytes
    fds: tuple[int, ...]  # duplicates of ours: the caller may close its own while the packet waits


class Control:
    """The connection. Created by ``connect``; ``on_lost`` is called once, with the reason, when it is gone.

    Args:
        sock: Connected, non-blocking.
        timeout_s: Silence after which a worker that owes an answer is unresponsive.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self.on_lost: Callable[[WorkerLost], None] | None = None
        self._socket = sock
        self.timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._seq = 0
        self._pending: dict[int, _Pending] = {}
        self._outbox: deque[_Outgoing] = deque()
        self._buffer = bytearray(abi.MAX_PACKET)
        self._view = memoryview(self._buffer)
        self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._lost: WorkerLost | None = None
        self._awaiting_fds = 0
        self._loop.add_reader(sock, self._readable)

    @classmethod
    async def connect(cls, path: Path, *, wait_s: float, timeout_s: float) -> Control:
        """Connect to ``path``, waiting up to ``wait_s`` for somebody to listen there.

        Raises:
            WorkerLost: Nobody listens there.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        if len(os.fsencode(path)) > _PATH_MAX:
            raise WorkerLost(f"{path} is too long for a socket (at most {_PATH_MAX} bytes); choose a shorter --socket")
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.setblocking(False)
            try:
                sock.connect(os.fspath(path))
            except OSError as error:
                sock.close()
                if loop.time() >= deadline or error.errno not in {errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN}:
                    raise WorkerLost(f"nobody answers at {path}: {error.strerror}") from error
                await asyncio.sleep(_RETRY_S)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                return cls(sock, timeout_s)

    def submit(self, message: Message) -> asyncio.Future[Reply]:
        """Send ``message`` after all earlier ones; the future gets the whole answer, or WorkerLost."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self._lost is not None:
            future.set_exception(self._lost)
            future.exception()  # some callers never look
            return future
        self._seq = self._seq % 0xFFFFFFFF + 1
        awaits_fds = message.type is abi.Type.HANDOVER
        self._awaiting_fds += awaits_fds
        if not self._pending:
            self._heard = self._loop.time()
        self._pending[self._seq] = _Pending(future, Reply(), awaits_fds)
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout_s, self._watch)
        outgoing = _Outgoing(abi.HEADER.pack(message.type, 0, self._seq), message.body, message.fds)
        if self._outbox or not self._send(outgoing):
            outgoing.fds = tuple(os.dup(fd) for fd in message.fds)
            if not self._outbox:
                self._loop.add_writer(self._socket, self._writable)
            self._outbox.append(outgoing)
        return future

    async def request(self, message: Message) -> Reply:
        """``submit`` and wait."""
        return await self.submit(message)

    def close(self) -> None:
        """Let go; whoever still waits gets WorkerLost, ``on_lost`` is not called."""
        self.on_lost = None
        self._end(WorkerLost("the control connection was closed"))

    def _send(self, outgoing: _Outgoing) -> bool:
        """True when it went out, or will never."""
        ancillary = []
        if outgoing.fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", outgoing.fds)))
        try:
            self._socket.sendmsg((outgoing.header, outgoing.body), ancillary)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return False
            self._loop.call_soon(self._end, WorkerLost(f"sending failed: {error.strerror}"))
        return True

    def _writable(self) -> None:
        while self._outbox:
            if not self._send(self._outbox[0]):
                return
            for fd in self._outbox.popleft().fds:
                os.close(fd)
        self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        for _ in range(_PACKETS_PER_WAKE):
            fds: list[int] = []
            try:
                if self._awaiting_fds:
                    data, fds, _, _ = socket.recv_fds(self._socket, abi.MAX_PACKET, _FDS_PER_PACKET)
                else:
                    data = bytes(self._view[: self._socket.recv_into(self._buffer)])
            except BlockingIOError:
                break
            except OSError as error:
                self._end(WorkerLost(f"the control socket failed: {error.strerror}"))
                return
            if not data:
                self._end(WorkerLost("it closed its control socket"))
                return
            self._take(data, fds)
        self._heard = self._loop.time()

    def _take(self, data: bytes, fds: Sequence[int]) -> None:
        kind, _, seq = abi.HEADER.unpack(data)
        pending = self._pending.get(seq)
        if pending is None:
            for fd in fds:
                os.close(fd)
            return
        if kind != abi.Type.DONE:
            if fds:
                pending.reply.fds[len(pending.reply.records)] = list(fds)
            pending.reply.records.append(data)
            return
        del self._pending[seq]
        self._awaiting_fds -= pending.fds
        pending.reply.done = codec.decode_done(data)
        if pending.future.cancelled():
            _close_all(pending.reply)
        else:
            pending.future.set_result(pending.reply)

    def _watch(self) -> None:
        self._timer = None
        if not self._pending:
            return
        silent_s = self._loop.time() - self._heard
        if silent_s < self.timeout_s:
            self._timer = self._loop.call_later(self.timeout_s - silent_s, self._watch)
        else:
            self._end(WorkerSilent(f"it did not answer for {self.timeout_s:.0f} s"))

    def _end(self, reason: WorkerLost) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        for outgoing in self._outbox:
            for fd in outgoing.fds:
                os.close(fd)
        self._outbox.clear()
        for pending in self._pending.values():
            _close_all(pending.reply)
            if not pending.future.done():
                pending.future.set_exception(reason)
                pending.future.exception()  # a caller that stopped at an earlier failure never looks
        self._pending.clear()
        if self.on_lost is not None:
            self.on_lost(reason)


def _close_all(reply: Reply) -> None:
    for fds in reply.fds.values():
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)
