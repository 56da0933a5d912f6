# SPDX-License-Identifier: Apache-2.0
"""A proxy data plane with real workers, real servers that say their name, and clients, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fairlead.dataplane.proxy.driver import ProxyDataPlane
from fairlead.model.state import ForwardingState
from fairlead.policy import tables
from fairlead.policy.plan import plan
from support.models import forwarding_state, listener, server_spec, service_spec, table_spec
from support.processes import free_port


async def until(predicate: Callable[[], object], timeout_s: float, what: str) -> None:
    """Poll ``predicate`` while the event loop goes on."""
    try:
        async with asyncio.timeout(timeout_s):
            while not predicate():  # noqa: ASYNC110  # what it waits for is another process
                await asyncio.sleep(0.005)
    except TimeoutError as error:
        raise AssertionError(f"not within {timeout_s} s: {what}") from error


class Lab:
    """Planes over one runtime directory; the last one is stopped at the end, with all its workers.

    Attributes:
        events: Kinds of events, in order.
        changes: How often a plane said that something changed.
    """

    def __init__(self, directory: Path, program: Path) -> None:
        self.directory = directory
        self.program = program
        self.events: list[tuple[str, str, str]] = []
        self.changes = 0
        self._planes: list[ProxyDataPlane] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def plane(self, workers: int = 2, *, start: bool = True) -> ProxyDataPlane:
        """Another agent's data plane; the former one must be detached."""
        plane = ProxyDataPlane(
            runtime_dir=self.directory,
            workers=workers,
            worker_path=self.program,
            build_table=tables.build,
            on_change=self._changed,
            on_event=lambda *event: self.events.append(event),
        )
        self._planes.append(plane)
        if start:
            await plane.start()
        return plane

    async def server(self) -> str:
        """A server that answers every line with its address and the line; the address."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._servers.append(server)
        host, port = server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def client(self, at: str) -> Client:
        """A connection to a listener."""
        host, _, port = at.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self._writers.append(writer)
        return Client(reader, writer)

    async def ask(self, at: str) -> str:
        """A connection that stays open: the address of the server that answered, or nothing when it was refused."""
        with contextlib.suppress(ConnectionResetError):  # an RST right behind the handshake
            return await (await self.client(at)).say()
        return ""

    def hang_up(self) -> None:
        """All clients and servers close their connections."""
        for writer in self._writers:
            writer.close()

    def kinds(self) -> list[str]:
        """The kinds of all events so far."""
        return [kind for kind, _, _ in self.events]

    async def end(self) -> None:
        """Stop what still runs."""
        if self._planes:
            await self._planes[-1].stop(drain_s=0)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(self) -> None:
        self.changes += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.append(writer)
        host, port = writer.get_extra_info("sockname")
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                writer.write(f"{host}:{port} ".encode() + line)
                await writer.drain()
        writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()


class Client:
    """A client that says a line and hears the answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def say(self, word: str = "hello") -> str:
        """The address of the server that answered; empty when the connection ended."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):
                self.writer.write(f"{word}\n".encode())
                answer = await self._reader.readline()
                return answer.decode().partition(" ")[0]
            return ""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def one_service(*servers: str, at: str | None = None, size: int = 251, **changes: Any) -> tuple[ForwardingState, str]:
    """A service with one listener over these servers; the state and where it listens."""
    at = at or f"127.0.0.1:{free_port()}"
    recipe = table_spec(dict.fromkeys(servers, 1), size=size)
    state = forwarding_state(
        tuple(server_spec(f"web/{it}", it) for it in servers),
        (recipe,),
        (service_spec("web", tables.digest(recipe), **changes),),
        (listener("web", at),),
    )
    return state, at


async def bring(plane: ProxyDataPlane, state: ForwardingState) -> None:
    """Make the data plane hold ``state``, and see that it does."""
    await plane.apply(plan(state, await plane.observe()))
    assert not plan(state, await plane.observe())


async def pids(plane: ProxyDataPlane) -> list[int]:
    """Process ids of the workers, by slot."""
    return [worker.pid for worker in (await plane.counters()).workers]


async def kill(plane: ProxyDataPlane, slot: int) -> None:
    """SIGKILL of one worker."""
    os.kill(next(it.pid for it in (await plane.counters()).workers if it.slot == slot), signal.SIGKILL)


@contextlib.asynccontextmanager
async def lab(directory: Path, program: Path) -> AsyncIterator[Lab]:
    """A Lab whose end is seen to leave no control socket behind."""
    async with Lab(directory, program) as made:
        yield made
    assert not _sockets(directory)


def _sockets(directory: Path) -> list[Path]:
    return list(directory.glob("*.sock"))
