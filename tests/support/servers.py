# SPDX-License-Identifier: Apache-2.0
"""Small misbehaving servers on loopback for probes, and a watch over what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fairlead.model.health import ProbeTarget
from fairlead.model.net import Endpoint
from fairlead.model.pool import HealthMonitor

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def target_at(port: int, host: str = "127.0.0.1", /, **monitor: Any) -> ProbeTarget:
    """A target on loopback with a monitor of these values."""
    return ProbeTarget(Endpoint(ip_address(host), port), HealthMonitor(**monitor))


@contextlib.asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that runs ``handler`` for every connection; its port. Everything ends with the block."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=128) as listener:
        listener.setblocking(False)
        tasks: set[asyncio.Task[None]] = set()
        tasks.add(asyncio.create_task(_accept(listener, handler, tls, tasks)))
        try:
            yield listener.getsockname()[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)


async def _accept(
    listener: socket.socket, handler: Handler, tls: ssl.SSLContext | None, tasks: set[asyncio.Task[None]]
) -> None:
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        tasks.add(asyncio.create_task(_serve(connection, handler, tls)))


async def _serve(connection: socket.socket, handler: Handler, tls: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await handler(reader, writer)
        finally:
            transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def answering(*pieces: bytes, pause_s: float = 0.0) -> Handler:
    """Reads a request head, sends ``pieces`` with pauses between them, closes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        writer.close()
        await writer.wait_closed()

    return handler


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything, says nothing."""
    await reader.read()
    await asyncio.Event().wait()


async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads something, then sends an RST."""
    await reader.read(1)
    reset(writer)


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads something, then closes in good order."""
    await reader.read(65536)
    writer.close()
    await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with an RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def deaf_listener() -> Iterator[int]:
    """A port whose listener has stopped accepting: its queue is full, further SYNs are dropped."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener.getsockname()[1]


def descriptors() -> set[str]:
    """What this process holds open, without the descriptor that lists them."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} {entry.readlink()}")
    return {entry for entry in found if "/proc/" not in entry}
