# SPDX-License-Identifier: Apache-2.0
"""Compares fairlead with HAProxy, nginx, nft and no load balancer at all in one run: ``make bench [ARGS=--quick]``.

Every round measures all contenders one after the other, each round in another order; what is claimed is the
median of the ratios within rounds. A second fairlead shows how much two equal things differ here (A/A).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench import contenders as make
from bench import rows
from bench.contenders import Contender, Place
from bench.machine import Cpus, describe, split_cpus
from bench.report import PROXIES, remarks, table
from bench.results import Layout, Results
from bench.rounds import Measure, Schedule, rounds

ROOT = Path(__file__).resolve().parents[1]
SERVERS = 3
WANTED_IDLE = 10000
IDLE_ROUNDS = 2
STILL_OPEN = 1000  # nginx keeps the UDP flows of the rows before for 60 s, and they count as connections there
STORM = 3000
MOST = 2  # rounds are measured, of each that is wanted: some are disturbed
LATENCY_SHARE = 0.4  # of what the slowest contender can do
LOOPBACK = "proxies"
IN_NAMESPACES = ("B7", "B8", "B9")


def compile_load(directory: Path) -> Path:
    """Compile the load generator."""
    sys.path.insert(0, str(ROOT))
    from hatch_build import compiler  # noqa: PLC0415

    program = directory / "load"
    sources = sorted(map(str, (ROOT / "bench/load").glob("*.c")))
    subprocess.run([*compiler(), "-std=gnu11", "-O2", "-o", str(program), *sources], check=True)
    return program


@contextmanager
def servers(tools: rows.Tools, directory: Path) -> Iterator[list[int]]:
    """The real servers: one process that answers on several ports."""
    ports = [make.free_port() for _ in range(SERVERS)]
    log = directory / "servers.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            tools.command(str(tools.load), "serve", make.HOST, *map(str, ports)), stdout=stream, stderr=stream
        )
    try:
        make.wait_for(lambda: make.accepts(make.HOST, ports[-1]), "the server", process, log)
        yield ports
    finally:
        process.kill()
        process.wait()


NAMES = ("fairlead", "fairlead-again", "haproxy", "haproxy-splice", "nginx", "direct")


def line_up(ports: list[int], directory: Path, cpus: Cpus, only: Collection[str]) -> list[Contender]:
    """All contenders, or those that were asked for."""
    makers: dict[str, Callable[[str, Place], Contender]] = {
        "haproxy": make.haproxy,
        "haproxy-splice": partial(make.haproxy, splice=True),
        "nginx": make.nginx,
        "direct": make.direct,
    }
    servers = tuple(f"{make.HOST}:{port}" for port in ports)
    return [
        makers.get(name, make.fairlead)(name, Place(make.HOST, make.free_port(), servers, directory, cpus))
        for name in NAMES
        if not only or name in only
    ]


def proxies(tools: rows.Tools, directory: Path, only: Collection[str], *, quick: bool) -> Results:
    """The rows of the proxies, on loopback."""
    results = Results(describe())
    with ExitStack() as stack:
        who = line_up(stack.enter_context(servers(tools, directory)), directory, tools.cpus, only)
        for contender in who:
            stack.callback(contender.stop)
            contender.launch()
        for contender in who:
            contender.wait()
        measure_all(results, who, tools, quick=quick)
    return results


def measure_all(results: Results, who: list[Contender], tools: rows.Tools, *, quick: bool) -> None:
    """All rows, in the order of the table."""
    seconds, count = (0.6, 5) if quick else (1.5, 10)
    normal = [contender for contender in who if contender.name != "haproxy-splice"]
    proxies = [contender for contender in normal if contender.command is not None]

    def timed(what: str, who: list[Contender], count: int, measure: Measure) -> None:
        rounds(results, what, who, Schedule(count, MOST * count), measure, cpus=tools.cpus)

    def counted(what: str, count: int, measure: Measure) -> None:
        rounds(results, what, proxies, Schedule(count, count), measure, cpus=None)

    timed("connections", normal, count, lambda c: rows.connect(tools, c, seconds))
    timed("requests", normal, 4 if quick else count, lambda c: rows.keepalive(tools, c, seconds))
    slowest = min((results.speed(c.name, "request_rate") for c in proxies), default=10000.0)
    rate = max(100.0, LATENCY_SHARE * slowest)
    results.notes["latency_rate_per_second"] = rate
    timed("latency", normal, 4 if quick else 10, lambda c: rows.latency(tools, c, seconds * 1.5, rate))
    timed("bulk", who, 3 if quick else 10, lambda c: rows.bulk(tools, c, seconds))
    count = 3 if quick else 10
    clients = min(STORM, make.limit() // 2)
    results.notes["storm_connections"] = clients
    timed("storm", normal, count, lambda c: rows.storm(tools, c, clients))
    spoken = [contender for contender in normal if contender.datagrams]
    timed("datagrams", spoken, count, lambda c: rows.datagrams(tools, c, seconds))
    counted("system calls", 1 if quick else 3, lambda c: rows.system_calls(tools, c, 0.5))
    held = min(WANTED_IDLE, make.limit() - STILL_OPEN)
    results.notes["idle_connections"] = held
    counted("memory", 1 if quick else IDLE_ROUNDS, lambda c: rows.memory(tools, c, held))


def left_out(suites: Collection[str]) -> list[str]:
    """Those of the suites that cannot run here."""
    return [] if os.geteuid() == 0 else [suite for suite in suites if suite in IN_NAMESPACES]


def show(results: Results, layouts: Collection[Layout], notes: Collection[str]) -> None:
    """Print the tables that have figures."""
    tables = [text for layout in layouts if (text := table(results, layout))]
    print("\n\n".join([*tables, "\n".join(notes)]) + "\n")


def main() -> int:
    """Run; the exit code says whether every row could be measured."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    from bench.net import report as net_report  # noqa: PLC0415  # needs those paths
    from bench.net import suite as net  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes, and wider intervals")
    parser.add_argument("--workers", type=int, default=1, help="CPUs of the load balancers")
    suites, names = (LOOPBACK, *IN_NAMESPACES), tuple(dict.fromkeys((*NAMES, *net_report.NAMES)))
    choices = (*suites, *names)
    parser.add_argument("--only", nargs="*", default=[], choices=choices, help="rows and contenders to measure")
    parser.add_argument("--json", type=Path, help="where to write all samples (default: bench/results/TIME.json)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    started = time.time()
    cpus = split_cpus(arguments.workers)
    wanted = [suite for suite in suites if suite in arguments.only] or list(suites)
    only = set(arguments.only) & set(names)
    refused = left_out(wanted)
    wanted = [suite for suite in wanted if suite not in refused]
    document: dict[str, object] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fl-bench-") as path:
        directory = Path(path)
        tools = rows.Tools(compile_load(directory), cpus)
        if LOOPBACK in wanted:
            results = proxies(tools, directory, only, quick=arguments.quick)
            show(results, (PROXIES,), remarks(results, cpus))
            document[LOOPBACK] = results.document((PROXIES,))
            failures += results.failures
        if in_namespaces := [suite for suite in wanted if suite in IN_NAMESPACES]:
            effort = net.QUICK if arguments.quick else net.FULL
            results = net.measure(tools, directory, in_namespaces, only, effort)
            show(results, net_report.LAYOUTS, net_report.remarks(results, cpus))
            document["namespaces"] = results.document(net_report.LAYOUTS)
            failures += results.failures
    if refused:
        print(f"left out: {', '.join(refused)}: network namespaces and BPF need root")
    document["seconds"] = round(time.time() - started, 1)
    file = arguments.json or ROOT / "bench/results" / time.strftime("%Y%m%d-%H%M%S.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n")
    print(f"all samples: {file}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
