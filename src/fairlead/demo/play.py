# SPDX-License-Identifier: Apache-2.0
"""Draws the demo's picture again and again while servers, load balancer and client run."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO

from fairlead.demo.screen import CLEAR, lines_to_type, render
from fairlead.demo.servers import HOST, DemoServers
from fairlead.demo.traffic import Traffic
from fairlead.model.net import Listen
from fairlead.model.views import EventView, ServiceView

POOL = "web"
REQUESTS_PER_S = 20
ON_TERMINAL_S, ON_FILE_S = 0.5, 5.0  # between two pictures


class Watched(Protocol):
    """What the picture shows."""

    async def services(self) -> tuple[ServiceView, ...]:
        """All services with their figures now."""

    def events(self, after: int, limit: int) -> tuple[EventView, ...]:
        """What happened, oldest first."""


def configuration(listen: str, ports: Mapping[str, int]) -> str:
    """The demo's configuration file, with the servers at ``ports`` behind ``listen``."""
    servers = "".join(f"      - {{address: {HOST}:{ports[name]}, name: {name}}}\n" for name in ports)
    return (
        f"services:\n  web:\n    listen: '{listen}'\n    pool: {POOL}\n    scheduler: rr\n"
        f"pools:\n  {POOL}:\n    servers:\n{servers}"
        "    health: {type: http, path: /healthz, interval: 500ms, timeout: 300ms, rise: 2, fall: 2}\n"
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the picture goes, and how the lines to type call the programs."""

    out: TextIO
    width: Callable[[], int]
    is_terminal: bool
    colour: bool
    program: str
    listen: Listen


class Play:
    """The demo beside the daemon."""

    def __init__(self, servers: DemoServers, stage: Stage) -> None:
        self._servers = servers
        self._stage = stage
        self._traffic = Traffic(str(stage.listen.address), stage.listen.first, REQUESTS_PER_S, lambda _why: None)
        self._before: tuple[ServiceView, ...] = ()
        self._drawn = time.monotonic()

    async def run(self, watched: Watched) -> None:
        """Ask and draw until cancelled."""
        asking = asyncio.create_task(self._traffic.run())
        try:
            while True:
                self._stage.out.write(await self._picture(watched))
                self._stage.out.flush()
                await asyncio.sleep(ON_TERMINAL_S if self._stage.is_terminal else ON_FILE_S)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _picture(self, watched: Watched) -> str:
        now, services = time.monotonic(), await watched.services()
        answered = sum(self._traffic.answered.values())
        text = render(
            services,
            watched.events(0, sys.maxsize),
            lines_to_type(
                self._servers.pids, self._servers.ports, POOL, program=self._stage.program, python=sys.executable
            ),
            self._stage.width(),
            self._stage.colour,
            before=self._before,
            elapsed_s=now - self._drawn,
            title=f"fairlead demo: http://{self._stage.listen}/  {answered} answered, "
            f"{self._traffic.failures} failed; Ctrl-C ends it",
        )
        self._before, self._drawn = services, now
        return CLEAR + text if self._stage.is_terminal else text
