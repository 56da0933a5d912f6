# SPDX-License-Identifier: Apache-2.0
"""Many flows at once, each with its own script of writes and endings, drawn from a fixed seed."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass

from support.peers import Server
from support.wait import until
from support.worker import Worker
from support.worker_abi import Scheduler

NUMBER = struct.Struct("=I")


@dataclass
class Script:
    """What both ends of one flow do; the client says the number of its script first."""

    up: list[bytes]
    down: list[bytes]
    resets: str  # "client", "server" or "": who ends with an RST after its last write
    first_to_end: str


def script(noise: random.Random) -> Script:
    def writes() -> list[bytes]:
        return [noise.randbytes(int(2 ** noise.uniform(0, 17))) for _ in range(noise.randrange(5))]

    resets = noise.choice(["", "", "", "client", "server"])
    return Script(writes(), writes(), resets, noise.choice(["client", "server", ""]))


async def speak(stream: socket.socket, parts: list[bytes], *, reset: bool) -> None:
    loop = asyncio.get_running_loop()
    for part in parts:
        await loop.sock_sendall(stream, part)
    if reset:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()
    else:
        stream.shutdown(socket.SHUT_WR)


async def hear(stream: socket.socket) -> tuple[bytes, bool]:
    """All that came, and whether an RST ended it."""
    loop = asyncio.get_running_loop()
    data = b""
    try:
        while part := await loop.sock_recv(stream, 65536):
            data += part
    except (ConnectionResetError, BrokenPipeError):
        return data, True
    return data, False


async def play(stream: socket.socket, say: list[bytes], *, reset: bool, wait: bool) -> tuple[bytes, bool]:
    """One end of a flow: hear first or speak first, or both at once."""
    if reset:
        if wait:
            heard = await hear(stream)
        try:
            await speak(stream, say, reset=True)
        except (ConnectionResetError, BrokenPipeError):
            stream.close()
        return heard if wait else (b"", True)
    hearing = asyncio.create_task(hear(stream))
    if wait:
        await hearing
    try:
        await speak(stream, say, reset=False)
    except OSError:
        return (await hearing)[0], True
    return await hearing


async def crowd(where: tuple[str, int], listening: socket.socket, scripts: list[Script]) -> None:
    loop = asyncio.get_running_loop()
    listening.setblocking(False)
    at_server: dict[int, tuple[bytes, bool]] = {}

    async def serve(stream: socket.socket) -> None:
        with stream:
            head = b""
            while len(head) < NUMBER.size and (part := await loop.sock_recv(stream, NUMBER.size - len(head))):
                head += part
            [number] = NUMBER.unpack(head)
            await loop.sock_sendall(stream, b".")
            it = scripts[number]
            wait = it.first_to_end == "client" and it.resets != "server"
            at_server[number] = await play(stream, it.down, reset=it.resets == "server", wait=wait)

    async def accept() -> None:
        async with asyncio.TaskGroup() as serving:
            for _ in scripts:
                stream, _ = await loop.sock_accept(listening)
                serving.create_task(serve(stream))

    async def visit(number: int) -> tuple[bytes, bool]:
        it = scripts[number]
        with socket.socket() as stream:
            stream.setblocking(False)
            await loop.sock_connect(stream, where)
            await loop.sock_sendall(stream, NUMBER.pack(number))
            assert await loop.sock_recv(stream, 1) == b"."  # before that, an RST would end the flow before it began
            wait = it.first_to_end == "server" and it.resets != "client"
            return await play(stream, it.up, reset=it.resets == "client", wait=wait)

    accepting = asyncio.create_task(accept())
    at_client = await asyncio.gather(*(visit(number) for number in range(len(scripts))))
    await accepting
    for number, it in enumerate(scripts):
        check(it, at_client[number], at_server[number])


def check(it: Script, at_client: tuple[bytes, bool], at_server: tuple[bytes, bool]) -> None:
    up, down = b"".join(it.up), b"".join(it.down)
    if it.resets == "":
        assert at_client == (down, False)
        assert at_server == (up, False)
    elif it.resets == "server":
        assert at_client[1]
        assert down.startswith(at_client[0])
    else:
        assert at_server[1]
        assert up.startswith(at_server[0])


def test_every_flow_gets_its_own_bytes_and_endings(worker: Worker, server: Server) -> None:
    noise = random.Random(20)
    where = worker.simple([server], scheduler=Scheduler.RR)
    server.socket.listen(1024)
    asyncio.run(crowd(where, server.socket, [script(noise) for _ in range(300)]))
    until(lambda: worker.memory.service()["connections"] == 300, 5, "all were accepted")
    worker.settled()
