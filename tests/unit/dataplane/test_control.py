# SPDX-License-Identifier: Apache-2.0
"""The control connection against a worker that the test plays itself."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fairlead.dataplane.proxy import abi
from fairlead.dataplane.proxy.control import Control, Message, WorkerLost, WorkerSilent


class Peer:
    """The worker's side of a connection."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "worker.sock"
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(self.path))
        self._listening.listen()
        self.socket: socket.socket | None = None

    async def meet(self, timeout_s: float) -> Control:
        control = await Control.connect(self.path, wait_s=0, timeout_s=timeout_s)
        self.socket, _ = self._listening.accept()
        self.socket.settimeout(5)
        return control

    def take(self) -> tuple[abi.Type, int, bytes]:
        assert self.socket is not None
        data = self.socket.recv(abi.MAX_PACKET)
        kind, _, seq = abi.HEADER.unpack(data)
        return abi.Type(kind), seq, data[abi.HEADER.size :]

    def record(self, kind: abi.Type, seq: int, body: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        assert self.socket is not None
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([abi.HEADER.pack(kind, 0, seq), body], ancillary)

    def done(self, seq: int, error: int = 0, message: bytes = b"") -> None:
        self.record(abi.Type.DONE, seq, abi.DONE.pack(0, 0, 0, error, 0, message)[abi.HEADER.size :])

    def close(self) -> None:
        self._listening.close()
        if self.socket is not None:
            self.socket.close()


@contextlib.asynccontextmanager
async def meeting(directory: Path, timeout_s: float = 5.0) -> AsyncIterator[tuple[Peer, Control]]:
    peer = Peer(directory)
    control = await peer.meet(timeout_s)
    try:
        yield peer, control
    finally:
        control.close()
        peer.close()


async def test_answers_find_their_requests_in_any_order(runtime: Path) -> None:
    async with meeting(runtime) as (peer, control):
        first = control.submit(Message(abi.Type.DUMP))
        second = control.submit(Message(abi.Type.SERVER_DEL, b"x"))
        (kind, one, _), (_, two, body) = peer.take(), peer.take()
        assert (kind, body, one == two) == (abi.Type.DUMP, b"x", False)
        peer.record(abi.Type.SERVER_PUT, one, b"abc")
        peer.done(two, 16, b"in use")
        peer.done(one)
        assert (await second).done.message == "in use"
        reply = await first
        assert [record[abi.HEADER.size :] for record in reply.records] == [b"abc"]
        assert reply.done.error == 0


async def test_more_is_sent_than_the_socket_holds_and_in_order(runtime: Path) -> None:
    async with meeting(runtime) as (peer, control):
        with tempfile.TemporaryFile() as file:
            asked = [control.submit(Message(abi.Type.TABLE_PUT, bytes(100_000), (file.fileno(),))) for _ in range(100)]
            seqs = []
            for _ in range(100):
                kind, seq, body = await asyncio.to_thread(peer.take)
                assert (kind, len(body)) == (abi.Type.TABLE_PUT, 100_000)
                seqs.append(seq)
                peer.done(seq)
            assert seqs == sorted(seqs)
            await asyncio.gather(*asked)


async def test_descriptors_arrive_with_their_records_and_those_nobody_waits_for_are_closed(runtime: Path) -> None:
    async with meeting(runtime) as (peer, control):
        asked = control.submit(Message(abi.Type.HANDOVER))
        _, seq, _ = peer.take()
        read, write = os.pipe()
        peer.record(abi.Type.LISTEN_PUT, seq, b"one")
        peer.record(abi.Type.LISTEN_PUT, seq, b"two", (write,))
        peer.record(abi.Type.LISTEN_PUT, seq + 1000, b"stray", (write,))
        peer.done(seq)
        reply = await asked
        [(index, [fd])] = reply.fds.items()
        assert index == 1
        os.write(fd, b"through")
        assert os.read(read, 100) == b"through"
        for each in (fd, read, write):
            os.close(each)


async def test_the_end_of_the_worker_reaches_everybody_who_waits_once(runtime: Path) -> None:
    async with meeting(runtime) as (peer, control):
        told: list[WorkerLost] = []
        control.on_lost = told.append
        asked = [control.submit(Message(abi.Type.DUMP)) for _ in range(3)]
        assert peer.socket is not None
        peer.socket.close()
        for future in asked:
            with pytest.raises(WorkerLost, match="reset by peer"):
                await future
        with pytest.raises(WorkerLost):
            await control.request(Message(abi.Type.DUMP))
        assert len(told) == 1


async def test_silence_is_a_loss_but_slow_progress_is_not(runtime: Path) -> None:
    async with meeting(runtime, timeout_s=0.3) as (peer, control):
        told: list[WorkerLost] = []
        control.on_lost = told.append
        asked = [control.submit(Message(abi.Type.DUMP)) for _ in range(6)]
        for future in asked[:5]:
            _, seq, _ = peer.take()
            await asyncio.sleep(0.1)
            peer.done(seq)
            await future
        with pytest.raises(WorkerSilent, match="did not answer"):
            await asked[5]
        assert len(told) == 1


async def test_an_idle_connection_is_not_silent(runtime: Path) -> None:
    async with meeting(runtime, timeout_s=0.4) as (peer, control):
        for pause_s in (0.0, 0.3, 0.6):
            await asyncio.sleep(pause_s)
            asked = control.submit(Message(abi.Type.DUMP))
            await asyncio.sleep(0.2)
            peer.done(peer.take()[1])
            await asked


async def test_a_cancelled_request_closes_the_descriptors_of_its_answer(runtime: Path) -> None:
    async with meeting(runtime) as (peer, control):
        asked = control.submit(Message(abi.Type.HANDOVER))
        _, seq, _ = peer.take()
        asked.cancel()
        with tempfile.TemporaryFile() as file:
            peer.record(abi.Type.LISTEN_PUT, seq, b"", (file.fileno(),))
        peer.done(seq)
        later = control.submit(Message(abi.Type.DUMP))
        peer.done(peer.take()[1])
        await later


async def test_a_path_that_no_socket_can_have_is_named(runtime: Path) -> None:
    with pytest.raises(WorkerLost, match="too long for a socket"):
        await Control.connect(runtime / ("x" * 120), wait_s=0, timeout_s=1)


async def test_nobody_there(runtime: Path) -> None:
    with pytest.raises(WorkerLost, match="nobody answers"):
        await Control.connect(runtime / "worker.sock", wait_s=0.02, timeout_s=1)
