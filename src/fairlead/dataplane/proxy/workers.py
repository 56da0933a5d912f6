# SPDX-License-Identifier: Apache-2.0
"""Worker processes: starting them detached from the agent, finding those that run, noticing their end.

Invariant: a worker ends in exactly one call of its watcher, with one line that says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from fairlead.dataplane.proxy import abi, codec
from fairlead.dataplane.proxy.control import Control, Message, WorkerLost, WorkerSilent
from fairlead.errors import DataPlaneError

START_TIMEOUT_S = 10.0
RESPONSE_TIMEOUT_S = 30.0  # a worker is replaced, and its flows are reset, when it is silent this long
LOG_LIMIT = 1 << 20
_END_WAIT_S = 0.1
_SOCKET_NAME = re.compile(r"worker-(\d+)(?:-\d+)?\.sock")
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Worker:
    """One running process and the control connection to it.

    Attributes:
        slot: Its row in the shared memory.
        draining: It takes no new flows any more.
        ended: Set when the process is gone.
    """

    def __init__(self, slot: int, path: Path, control: Control, hello: codec.Hello) -> None:
        self.slot = slot
        self.pid = hello.pid
        self.path = path
        self.control = control
        self.hello = hello
        self.draining = hello.draining
        self.ended = asyncio.Event()
        self._reason: str | None = None
        self._on_end: Callable[[Worker, str], None] | None = None
        self._on_return: Callable[[], None] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1

    def watch(self, on_end: Callable[[Worker, str], None], on_return: Callable[[], None] | None = None) -> None:
        """Call ``on_end`` once, when the process is gone; a silent worker is killed first.

        A worker serves its newest connection only. When somebody else connected, the agent connects anew and calls
        ``on_return``, for what it told meanwhile was lost.
        """
        self._on_end = on_end
        self._on_return = on_return
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._loop.call_soon(self._end)
            return
        self._loop.add_reader(self._pidfd, self._end)
        self.control.on_lost = self._lost

    def kill(self, reason: str | None = None) -> None:
        """SIGKILL; ``reason`` is told when it is gone."""
        self._reason = self._reason or reason
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the process without ending it."""
        self._on_end = None
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        self.control.close()
        self._forget_pid()

    async def drain(self, deadline_s: float) -> None:
        """Tell it to take no new flows and to end with its last flow, or after ``deadline_s``."""
        self.draining = True
        with contextlib.suppress(WorkerLost):
            await self.control.request(Message(abi.Type.DRAIN, codec.encode_drain(deadline_s)))

    async def quit(self, wait_s: float) -> None:
        """End it now: by request, and by SIGKILL when it is still there after ``wait_s``."""
        self.draining = True
        self.control.submit(Message(abi.Type.QUIT))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.ended.wait()
                return
        self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.ended.wait()

    def _lost(self, reason: WorkerLost) -> None:
        if isinstance(reason, WorkerSilent):
            self.kill(str(reason))
        else:
            self._reconnecting = self._loop.create_task(self._reconnect(reason))

    async def _reconnect(self, reason: WorkerLost) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_WAIT_S):  # a process that ends closes its socket a moment earlier
                await self.ended.wait()
                return
        try:
            control = await Control.connect(self.path, wait_s=0, timeout_s=self.control.timeout_s)
            hello = await _hello(control)
        except WorkerLost:
            self.kill(str(reason))
            return
        if hello.pid != self.pid:
            control.close()
            self.kill(str(reason))
            return
        self.control = control
        control.on_lost = self._lost
        if self._on_return is not None:
            self._on_return()

    def _end(self) -> None:
        self._forget_pid()
        ended = _reap(self.pid)
        self.ended.set()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        self.control.close()
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(self, self._reason or ended)

    def _forget_pid(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


async def find(directory: Path, timeout_s: float) -> list[Worker]:
    """Connect to all workers that run in ``directory``; sockets nobody serves are removed, silent workers killed."""
    found = []
    for path in _sockets(directory):
        if (name := _SOCKET_NAME.fullmatch(path.name)) is None:
            continue
        try:
            control = await Control.connect(path, wait_s=0, timeout_s=timeout_s)
        except WorkerLost:
            path.unlink(missing_ok=True)
            continue
        try:
            hello = await _hello(control)
        except WorkerLost:
            await _kill_listener(path)
            path.unlink(missing_ok=True)
            continue
        found.append(Worker(hello.slot if hello.attached else int(name[1]), path, control, hello))
    return found


async def start(binary: Path, directory: Path, slot: int, timeout_s: float) -> Worker:
    """Start a worker that serves ``worker-SLOT.sock`` and connect to it.

    It has a session of its own, writes to a file of its own and inherits no descriptor, so that neither the agent's
    end nor its terminal's reaches it.

    Raises:
        DataPlaneError: The program cannot be started or does not come up.
    """
    path, log = directory / f"worker-{slot}.sock", directory / f"worker-{slot}.log"
    pid = _spawn(binary, path, log, slot)
    try:
        control = await _connect(path, pid, timeout_s)
        return Worker(slot, path, control, await _hello(control))
    except WorkerLost as error:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended = await asyncio.to_thread(_wait, pid)
        last = last_line(log)
        raise DataPlaneError(f"the proxy worker {binary} did not come up ({ended}): {last or error}") from error
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise


def is_dead(pid: int) -> bool:
    """Whether no process of that id runs; one that nobody reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    return stat.rpartition(b") ")[2][:1] in {b"Z", b"X"}


def last_line(log: Path) -> str:
    """The last line a worker wrote, or nothing."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _sockets(directory: Path) -> list[Path]:
    return sorted(directory.glob("worker-*.sock"))


def _spawn(binary: Path, path: Path, log: Path, slot: int) -> int:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if log.stat().st_size > LOG_LIMIT:
            os.truncate(log, 0)
    try:
        return os.posix_spawn(
            binary,
            [os.fspath(binary), "--control", os.fspath(path), "--slot", str(slot)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    except OSError as error:
        raise DataPlaneError(
            f"cannot start the proxy worker {binary}: {error.strerror}; reinstall fairlead, which compiles it"
        ) from error


async def _connect(path: Path, pid: int, timeout_s: float) -> Control:
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while True:
        try:
            return await Control.connect(path, wait_s=0.1, timeout_s=timeout_s)
        except WorkerLost:
            if asyncio.get_running_loop().time() > deadline or _is_gone(pid):
                raise


async def _hello(control: Control) -> codec.Hello:
    reply = await control.request(Message(abi.Type.HELLO))
    if reply.done.error or not reply.records:
        control.close()
        raise WorkerLost("it does not say who it is")
    return codec.decode_hello(reply.records[0])


def _is_gone(pid: int) -> bool:
    """Whether our child ended; it stays to be reaped."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return True


def _wait(pid: int) -> str:
    with contextlib.suppress(ChildProcessError):
        return _describe(os.waitpid(pid, 0)[1])
    return "ended"


def _reap(pid: int) -> str:
    """Reap it if it is a child of this process."""
    with contextlib.suppress(ChildProcessError):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return _describe(status)
    return "ended"


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


async def _kill_listener(path: Path) -> None:
    """SIGKILL to the process that listens at ``path`` but does not answer, and wait for its end."""
    with contextlib.suppress(OSError, TimeoutError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        sock.connect(os.fspath(path))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(START_TIMEOUT_S):
            while not is_dead(pid):  # noqa: ASYNC110  # a process that is not ours tells nobody
                await asyncio.sleep(_END_WAIT_S / 10)
        _reap(pid)
