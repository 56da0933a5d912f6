# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the process for VIPs: start, adoption, replacement, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from fairlead.announce.base import PROTOCOL, Event, Wanted
from fairlead.announce.client import VrrpProcess
from fairlead.model.vip import STATIC, Vip
from support.wait import until, until_later

WANTED = Wanted((Vip(ip_address("192.0.2.10"), 24, "eth0", STATIC),))


class Bench:
    """A runtime directory, and what was told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.events: list[Event] = []
        self.speaks(PROTOCOL)

    def speaks(self, protocol: int) -> None:
        (self.directory / "protocol").write_text(str(protocol))

    def heard(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line)["type"] for line in (self.directory / "heard").read_text().splitlines()]
        return []

    def client(self) -> VrrpProcess:
        return VrrpProcess(self.directory, self.events.append, "support.vrrpstub")

    @asynccontextmanager
    async def running(self, wanted: Wanted = WANTED) -> AsyncIterator[VrrpProcess]:
        client = self.client()
        await client.start()
        client.set(wanted)
        try:
            if wanted.vips:
                # It reports before it reads.
                await until_later(lambda: self.pid(client) and "set" in self.heard(), 10, "a process knows the wish")
            yield client
        finally:
            await client.stop()

    @staticmethod
    def pid(client: VrrpProcess) -> int:
        """The stub reports its process id as a counter."""
        return client.report().invalid.get("eth0", {}).get("ttl", 0)


@pytest.fixture
def bench(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    here = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{here}:{os.environ['PYTHONPATH']}")
    return Bench(runtime)


def run(what: Coroutine[Any, Any, None]) -> None:
    asyncio.run(what)


def test_no_process_where_nothing_is_to_be_owned(bench: Bench) -> None:
    async def scene() -> None:
        async with bench.running(Wanted()):
            await asyncio.sleep(0.2)
        assert not (bench.directory / "vrrp.sock").exists()

    run(scene())


def test_it_is_told_what_is_wished_and_ends_with_a_word(bench: Bench) -> None:
    async def scene() -> None:
        async with bench.running() as client:
            pid = bench.pid(client)
            assert [event.kind for event in bench.events] == ["vrrp_backup"]
            client.set(WANTED)
        assert bench.heard() == ["set", "quit"], "the same wish is not told twice"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(scene())


def test_the_next_agent_adopts_it(bench: Bench) -> None:
    async def scene() -> None:
        first = bench.client()
        await first.start()
        first.set(WANTED)
        await until_later(lambda: bench.pid(first), 10, "a process reports")
        await first.detach()
        async with bench.running() as second:
            assert bench.pid(second) == bench.pid(first)

    run(scene())


def test_one_that_dies_is_replaced_and_told_again(bench: Bench) -> None:
    async def scene() -> None:
        async with bench.running() as client:
            pid = bench.pid(client)
            await until_later(lambda: bench.heard() == ["set"], 5, "it has heard what is wished")
            os.kill(pid, signal.SIGKILL)
            await until_later(lambda: bench.pid(client) != pid, 10, "another reports")
            await until_later(lambda: bench.heard() == ["set", "set"], 5, "and knows what is wished")
        assert [event.kind for event in bench.events] == ["vrrp_backup", "vrrp_process_ended", "vrrp_backup"]

    run(scene())


def test_its_last_words_are_told(bench: Bench) -> None:
    async def scene() -> None:
        (bench.directory / "die").touch()
        async with bench.running():
            await until_later(lambda: len(bench.events) > 1, 10, "its end is told")
            (bench.directory / "die").unlink()
        assert "the stub was told to die; it is started again" in bench.events[1].message

    run(scene())


@pytest.fixture
def older(bench: Bench) -> Iterator[subprocess.Popen[bytes]]:
    """A process that speaks another protocol."""
    bench.speaks(PROTOCOL + 1)
    path = bench.directory / "vrrp.sock"
    process = subprocess.Popen([sys.executable, "-m", "support.vrrpstub", str(path)])
    until(path.is_socket, 5, "it serves")
    bench.speaks(PROTOCOL)
    yield process
    assert process.wait(5) == 0


def test_one_of_another_version_gives_up_in_order_and_is_replaced(bench: Bench, older: subprocess.Popen[bytes]) -> None:
    async def scene() -> None:
        async with bench.running() as client:
            assert bench.pid(client) != older.pid
            await until_later(lambda: bench.heard() == ["quit", "set"], 5, "the old one gave up, the new one has heard")

    run(scene())
