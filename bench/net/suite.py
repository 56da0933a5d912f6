# SPDX-License-Identifier: Apache-2.0
"""Runs rows B7 (frames), B8 (connections) and B9 (requests)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import contenders as make
from bench import rows
from bench.machine import describe
from bench.net import rows as net_rows
from bench.net.contenders import Entrant, enter_all
from bench.net.course import PORT, Course, course, enter
from bench.net.report import AGAIN, CONNECTED, FEW, FORWARDING, MANY, NAMES, OURS
from bench.results import Results
from bench.rounds import Schedule, rounds
from bench.rows import CONCURRENCY
from support.netns import inside

SUITES = ("B7", "B8", "B9")
LATENCY_SHARE = 0.4  # of what the slowest contender can do
SIDE_ROWS = ((64, 1), (64, 512), (1024, CONCURRENCY))  # bytes, connections


@dataclass(frozen=True)
class Effort:
    """How many rounds the main rows, the others and frames get, and in how many of them all contenders take part."""

    rounds: int
    others: int
    frames: int
    every: int = 4
    flows: tuple[int, int] = (FEW, MANY)


FULL, QUICK, TINY = Effort(100, 70, 50), Effort(24, 12, 12), Effort(1, 1, 1, 1, (100, 1000))
BLOCK_S = 0.1  # short, so that what is compared is close in time, and many can be
LATENCY_S = 0.3
MOST = 1.4  # rounds are measured at most, of each that is wanted: some are disturbed
MOST_LOST = (
    30  # blocks with losses, while the balancer meets the flows: the brake lets fullnat store some 8,000 in each
)


@contextmanager
def servers(tools: rows.Tools, where: Course, directory: Path) -> Iterator[int]:
    """The real servers: one process that answers at every address of its namespace; its id."""
    log = directory / "net-servers.log"
    command = tools.command(*enter(where.servers, str(tools.load), "serve", "0.0.0.0", str(PORT)))

    def ready() -> bool:
        with inside(where.servers):
            return make.accepts(make.HOST, PORT)

    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        make.wait_for(ready, "the server", process, log)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def measure(
    tools: rows.Tools, directory: Path, suites: Collection[str], only: Collection[str], effort: Effort
) -> Results:
    """The rows of ``suites``, of the contenders in ``only`` (empty: all)."""
    results = Results(describe())
    connected = {*CONNECTED, AGAIN} if {"B8", "B9"} & set(suites) else set()
    forwarding = {*FORWARDING, AGAIN} if "B7" in suites else set()
    wanted = tuple(name for name in NAMES if name in connected | forwarding and (not only or name in only))
    with ExitStack() as stack:
        where = stack.enter_context(course(tools.cpus))
        server = stack.enter_context(servers(tools, where, directory))
        entrants = {entrant.contender.name: entrant for entrant in enter_all(where, wanted, directory)}
        for entrant in entrants.values():
            stack.callback(entrant.contender.stop)
            entrant.contender.launch()
        for entrant in entrants.values():
            entrant.contender.wait()
        run = _Run(results, tools, server, entrants, effort)
        if "B8" in suites:
            run.rounds(
                "connections", connected, effort.rounds, lambda e: net_rows.connections(tools, e, server, BLOCK_S)
            )
        if "B9" in suites:
            run.requests(connected)
        for entrant in entrants.values():
            where.spread(entrant.lane, brings_xdp=entrant.brings_xdp)
            entrant.contender.threads += entrant.lane.threads
        if connected:
            run.cpu(connected - {"back-to-back"})
        if "B7" in suites:
            run.frames(forwarding)
    return results


@dataclass
class _Run:
    results: Results
    tools: rows.Tools
    server: int
    entrants: dict[str, Entrant]
    effort: Effort

    def rounds(
        self,
        what: str,
        names: Collection[str],
        count: int,
        one: Callable[[Entrant], dict[str, float]],
        over: str = "direct",
    ) -> None:
        who = [entrant.contender for name, entrant in self.entrants.items() if name in names]
        schedule = Schedule(count, int(MOST * count), (OURS, AGAIN, over), self.effort.every)
        rounds(self.results, what, who, schedule, lambda c: one(self.entrants[c.name]), cpus=self.tools.cpus)

    def requests(self, names: Collection[str]) -> None:
        effort, results, tools = self.effort, self.results, self.tools
        main = f"requests_64_{CONCURRENCY}"

        def block(body: int, connections: int) -> Callable[[Entrant], dict[str, float]]:
            def one(entrant: Entrant) -> dict[str, float]:
                return net_rows.asked(tools, entrant, self.server, BLOCK_S, body=body, connections=connections)

            return one

        self.rounds("requests", names, effort.rounds, block(64, CONCURRENCY))
        for body, connections in SIDE_ROWS:
            self.rounds(f"requests of {body} B, {connections}", names, effort.others, block(body, connections))
        slowest = min((speed for name in names if (speed := results.speed(name, main))), default=1000.0)
        rate = max(100.0, LATENCY_SHARE * slowest)
        results.notes["latency_rate_per_second"] = rate
        self.rounds("latency", names, effort.others, lambda e: rows.latency(tools, e.contender, LATENCY_S, rate))

    def cpu(self, names: Collection[str]) -> None:
        self.rounds("CPU", names, self.effort.others, lambda e: net_rows.cpu(self.tools, e, BLOCK_S))

    def frames(self, names: Collection[str]) -> None:
        for label, flows in zip(("few", "many"), self.effort.flows, strict=True):

            def one(entrant: Entrant, label: str = label, flows: int = flows) -> dict[str, float]:
                rate, cost_ns = net_rows.forward(self.tools, entrant, BLOCK_S, flows)
                return {f"{label}_rate": rate, f"{label}_ns": cost_ns}

            for name, entrant in self.entrants.items():
                if name in names:
                    self._meet(entrant, flows)
            self.rounds(f"frames of {flows:,} flows", names, self.effort.frames, one, over="nft")

    def _meet(self, entrant: Entrant, flows: int) -> None:
        """Let the balancer see all flows before it counts: new ones cost more, and many at once look like a flood."""
        arrived = 0.0
        lost = 0
        while arrived < 2 * flows and lost < MOST_LOST:
            try:
                arrived += BLOCK_S * net_rows.forward(self.tools, entrant, BLOCK_S, flows)[0]
            except rows.Failed:  # a flood is braked, and what fails for good is told when it counts
                lost += 1
