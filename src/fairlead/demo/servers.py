# SPDX-License-Identifier: Apache-2.0
"""Small real HTTP servers, each a process of its own: ``python -m fairlead.demo.servers NAME PORT``.

Invariant: a server answers every GET with its name and keeps the connection open; ``/healthz`` says ok.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from fairlead.errors import FairleadError

HOST = "127.0.0.1"
LONGEST_REQUEST = 16384
START_S = 5.0


class _Responder(asyncio.Protocol):
    """One connection: whole request heads in, answers out; bodies are not expected."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0:
            head, self._pending = self._pending[:end], self._pending[end + 4 :]
            words = head.split(b" ", 2)
            if len(words) != 3 or words[0] not in {b"GET", b"HEAD"}:
                self._transport.write(
                    b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                self._transport.close()
                return
            self._answer(words[0], words[1], last=b"connection: close" in head.lower() or b"HTTP/1.0" in head)
        if len(self._pending) > LONGEST_REQUEST:
            self._transport.close()

    def _answer(self, method: bytes, path: bytes, *, last: bool) -> None:
        assert self._transport is not None
        body = b"ok\n" if path == b"/healthz" else f"{self._name}\n".encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nServer: {self._name}\r\n"
        if last:
            head += "Connection: close\r\n"
        self._transport.write(head.encode() + b"\r\n" + (b"" if method == b"HEAD" else body))
        if last:
            self._transport.close()


async def serve(name: str, port: int) -> None:
    """Answer on the loopback address until SIGTERM or SIGINT; print one line when ready."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = await loop.create_server(lambda: _Responder(name), HOST, port, backlog=1024)
    sys.stdout.write(f"{name} answers on {HOST}:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await ended.wait()
    server.close()


class DemoServers:
    """The servers of a demo, by name; leaving the context ends all of them.

    Args:
        ports: Name to port; port 0 takes a free one.
    """

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = dict(ports)
        self._processes: dict[str, subprocess.Popen[str]] = {}

    @property
    def ports(self) -> Mapping[str, int]:
        """Name to port."""
        return dict(self._ports)

    @property
    def pids(self) -> Mapping[str, int]:
        """Name to process id, of those that live."""
        return {name: process.pid for name, process in self._processes.items() if process.poll() is None}

    def start(self) -> None:
        """Start every server that does not run, and wait until each answers.

        Raises:
            FairleadError: One could not start, for example because its port is taken.
        """
        for name in self._ports:
            self.revive(name)

    def revive(self, name: str) -> None:
        """Start one server unless it runs, on the port it had.

        Raises:
            FairleadError: It could not start.
        """
        if name in self.pids:
            return
        command = [sys.executable, "-m", "fairlead.demo.servers", name, str(self._ports[name])]
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends its servers in order
        )
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.stdout.close()
        if not line:
            reason = process.stderr.read().strip().rpartition("\n")[2]
            process.stderr.close()
            process.wait()
            raise FairleadError(f"the demo server {name} could not start: {reason}")
        process.stderr.close()
        self._ports[name] = int(line.rpartition(":")[2])
        self._processes[name] = process

    def kill(self, name: str) -> None:
        """End one server at once, as a crash would."""
        if name in self.pids:
            self._processes[name].kill()
            self._processes[name].wait()

    def stop(self) -> None:
        """End all servers and wait for them."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(START_S)
            if process.poll() is None:
                process.kill()
                process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def main(arguments: list[str]) -> int:
    """Run one server; the exit code."""
    if len(arguments) != 2 or not arguments[1].isdigit():
        sys.stderr.write("usage: python -m fairlead.demo.servers NAME PORT\n")
        return 2
    try:
        asyncio.run(serve(arguments[0], int(arguments[1])))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        sys.stderr.write(f"cannot listen on {HOST}:{arguments[1]}: {reason}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
