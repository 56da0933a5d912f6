# SPDX-License-Identifier: Apache-2.0
"""Probes that are cancelled at any moment close what is theirs and nothing else."""

from __future__ import annotations

import asyncio
import random
import socket

from fairlead.model.pool import HttpExpectation, MonitorType
from fairlead.probes.registry import probe
from support.servers import deaf_listener, serving, silent, target_at

STORMS, PROBES = 40, 25


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)


async def _talk(port: int, mine: bytes) -> int:
    """Exchange marked bytes until cancelled; descriptors that were closed by somebody else would mix them up."""
    rounds = 0
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.setblocking(False)
        try:
            while True:
                await loop.sock_sendall(connection, mine)
                assert await loop.sock_recv(connection, 100) == mine
                rounds += 1
        except asyncio.CancelledError:
            return rounds


async def test_f39_cancel_storms_close_no_descriptor_of_others() -> None:
    chance = random.Random(39)
    async with serving(_echo) as honest, serving(silent) as mute:
        with deaf_listener() as deaf:
            targets = [
                target_at(mute, type=MonitorType.HTTP, http=HttpExpectation(), timeout_s=5.0),
                target_at(mute, type=MonitorType.TLS, timeout_s=5.0),
                target_at(mute, type=MonitorType.TCP, timeout_s=5.0),
                target_at(deaf, type=MonitorType.TCP, timeout_s=5.0),
            ]
            talks = [asyncio.create_task(_talk(honest, b"talk %d" % number)) for number in range(4)]
            for _ in range(STORMS):
                storm = [asyncio.create_task(probe(chance.choice(targets))) for _ in range(PROBES)]
                for task in storm:
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    task.cancel()
                await asyncio.gather(*storm, return_exceptions=True)
            for talk in talks:
                talk.cancel()
            rounds = await asyncio.gather(*talks)
    assert min(rounds) > STORMS
