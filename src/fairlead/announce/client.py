# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the VRRP process: starts or adopts it, tells it what is wished, hears what happened.

Invariant: the last wish reaches every process that comes, also one that replaces another; a process is started only
when there is something to own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairlead.announce.base import MESSAGE_LIMIT, PROTOCOL, Event, Report, Wanted, decode, encode, read_report

BACK_OFF_S = (0.0, 0.2, 1.0, 5.0)  # before the next start, by ends in a row
STEADY_S = 30.0
START_S = 10.0
HELLO_S = 5.0
SILENCE_S = 15.0  # a process that says nothing for so long holds addresses that it does not defend
STOP_S = 10.0  # of an orderly stop: it waits for the others to take over


class _Lost(Exception):
    """The process cannot be reached."""


class VrrpProcess:
    """An ``Announcer`` whose work another process does.

    Args:
        directory: Of the control socket and the log.
        on_event: Takes what happened.
        module: Of the process.
    """

    def __init__(
        self, directory: Path, on_event: Callable[[Event], None], module: str = "fairlead.announce.vrrp"
    ) -> None:
        self._path = directory / "vrrp.sock"
        self._log = directory / "vrrp.log"
        self._on_event = on_event
        self._module = module
        self._wanted = Wanted()
        self._report = Report()
        self._changed = asyncio.Event()
        self._connection: socket.socket | None = None
        self._pid = 0
        self._children: set[int] = set()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Adopt a process that runs; one is started with the first wish."""
        with contextlib.suppress(_Lost):
            await self._connect()
        self._keeper = asyncio.create_task(self._keep(), name="vrrp")

    def set(self, wanted: Wanted) -> None:
        """What is wished from now on."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._send("set", wanted)
            self._changed.set()

    def report(self) -> Report:
        """How things were a moment ago."""
        return self._report

    def release(self, instance: str) -> None:
        """Hand over to another node."""
        self._send("release", instance)

    def claim(self, instance: str) -> None:
        """Take over now."""
        self._send("claim", instance)

    async def stop(self) -> None:
        """Give up everything in order, and end."""
        self._stop_keeping()
        if self._connection is not None:
            await self._quit()
        self._reap()
        for child in self._children:  # one that was being started; SIGTERM means "quit" there, too
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGTERM)
                pidfd = os.pidfd_open(child)
                with contextlib.suppress(TimeoutError):
                    await _ended(pidfd, STOP_S)
                os.close(pidfd)
        self._reap()

    async def detach(self) -> None:
        """Leave everything as it is and let go."""
        self._stop_keeping()
        self._hang_up()

    def _stop_keeping(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    async def _keep(self) -> None:
        """Have a process as long as one is needed."""
        ends = 0
        while True:
            if self._connection is None and not self._is_needed():
                self._changed.clear()
                await self._changed.wait()
                continue
            began = asyncio.get_running_loop().time()
            try:
                if self._connection is None:
                    await self._spawn()
                self._send("set", self._wanted)
                await self._listen()
            except _Lost as error:
                self._hang_up()
                self._reap()
                if self._is_needed():
                    message = f"{error}; it is started again"
                    self._on_event(Event("vrrp_process_ended", "vrrp", message, "error"))
            ends = 0 if asyncio.get_running_loop().time() - began > STEADY_S else ends + 1
            self._reap()
            await asyncio.sleep(BACK_OFF_S[min(ends, len(BACK_OFF_S)) - 1] if ends else 0.0)

    def _is_needed(self) -> bool:
        return bool(self._wanted.vips)

    async def _listen(self) -> None:
        """Take in messages until the process ends."""
        loop = asyncio.get_running_loop()
        while self._connection is not None:
            try:
                async with asyncio.timeout(SILENCE_S):
                    message = await loop.sock_recv(self._connection, MESSAGE_LIMIT)
            except TimeoutError:
                self._kill()
                raise _Lost(f"it said nothing for {SILENCE_S:g} s and was killed") from None
            except OSError as error:
                raise _Lost(f"the connection to it broke: {error.strerror}") from None
            if not message:
                raise _Lost(self._last_words())
            self._take(message)

    def _take(self, message: bytes) -> None:
        kind, body = decode(message)
        if kind == "event":
            self._on_event(Event(**body))
        elif kind == "report":
            self._report = read_report(body)

    async def _spawn(self) -> None:
        """Start a process and connect to it.

        Raises:
            _Lost: It does not come up.
        """
        with contextlib.suppress(_Lost):
            await self._connect()
            return
        child = self._start_process()
        self._children.add(child)
        deadline = asyncio.get_running_loop().time() + START_S
        while True:
            with contextlib.suppress(_Lost):
                await self._connect()
                return
            self._reap()
            if child not in self._children:
                raise _Lost(self._last_words())
            if asyncio.get_running_loop().time() > deadline:
                os.kill(child, signal.SIGKILL)
                raise _Lost(f"the process for VIPs did not come up within {START_S:g} s")
            await asyncio.sleep(0.01)

    def _start_process(self) -> int:
        """Its process id. It has a session of its own and a file for its last words."""
        with self._log.open("wb") as log:
            # -P: a module in the working directory must not take the place of one of the library.
            return os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", self._module, os.fspath(self._path)],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
                ],
                setsid=True,
                setsigmask=(),
            )

    async def _connect(self) -> None:
        """Connect to the process that serves the socket; one that speaks another protocol is ended first.

        Raises:
            _Lost: There is none, or it does not answer.
        """
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_LIMIT)
            await loop.sock_connect(sock, os.fspath(self._path))
            async with asyncio.timeout(HELLO_S):
                _, hello = decode(await loop.sock_recv(sock, MESSAGE_LIMIT))
        except (OSError, ValueError, TimeoutError) as error:
            sock.close()
            raise _Lost(f"it does not answer: {error}") from None
        self._connection, self._pid = sock, _peer_of(sock)
        if hello["protocol"] != PROTOCOL:
            await self._quit()
            raise _Lost("a process of another version gave its addresses up")

    def _send(self, kind: str, body: Any) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):  # the reader notices
                self._connection.send(encode(kind, body))

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _quit(self) -> None:
        """Have the process give everything up and end."""
        pidfd = os.pidfd_open(self._pid)
        self._send("quit", None)
        try:
            await _ended(pidfd, STOP_S)
        except TimeoutError:
            self._kill()
        finally:
            os.close(pidfd)
            self._hang_up()

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Take the exit codes of processes that this agent started and that have ended."""
        for child in list(self._children):
            try:
                ended = os.waitpid(child, os.WNOHANG)[0] == child
            except ChildProcessError:
                ended = True
            if ended:
                self._children.discard(child)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            if lines:
                return f"the process for VIPs ended: {lines[-1]}"
        return "the process for VIPs ended"


def _peer_of(sock: socket.socket) -> int:
    return int(struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


async def _ended(pidfd: int, timeout_s: float) -> None:
    """Return when the process has ended.

    Raises:
        TimeoutError: It has not.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(pidfd, done.set)
    try:
        async with asyncio.timeout(timeout_s):
            await done.wait()
    finally:
        loop.remove_reader(pidfd)
