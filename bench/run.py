# SPDX-License-Identifier: Apache-2.0
"""Compares fairlead with HAProxy, nginx and a direct connection in one run: ``make bench [ARGS=--quick]``.

Every round measures all contenders one after the other, each round in another order; what is claimed is the
median of the ratios within rounds. A second fairlead shows how much two equal things differ here (A/A).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import contenders as make
from bench import rows
from bench.contenders import Contender
from bench.machine import Cpus, describe, split_cpus
from bench.report import Results, table

ROOT = Path(__file__).resolve().parents[1]
SERVERS = 3
WANTED_IDLE = 10000
IDLE_ROUNDS = 2
STORM = 3000
LATENCY_SHARE = 0.4  # of what the slowest contender can do
Measure = Callable[[Contender], dict[str, float]]


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
            tools.command(str(tools.load), "serve", *map(str, ports)), stdout=stream, stderr=stream
        )
    try:
        make.wait_for(ports[-1], "the server", process, log)
        yield ports
    finally:
        process.kill()
        process.wait()


NAMES = ("fairlead", "fairlead-again", "haproxy", "haproxy-splice", "nginx", "direct")


def line_up(ports: list[int], directory: Path, cpus: Cpus, only: list[str]) -> list[Contender]:
    """All contenders, or those that were asked for."""
    all_of_them: dict[str, Callable[[], Contender]] = {
        "fairlead": lambda: make.fairlead("fairlead", ports, directory, cpus),
        "fairlead-again": lambda: make.fairlead("fairlead-again", ports, directory, cpus),
        "haproxy": lambda: make.haproxy("haproxy", ports, directory, cpus, splice=False),
        "haproxy-splice": lambda: make.haproxy("haproxy-splice", ports, directory, cpus, splice=True),
        "nginx": lambda: make.nginx("nginx", ports, directory, cpus),
        "direct": lambda: make.direct(ports, directory, cpus),
    }
    return [create() for name, create in all_of_them.items() if not only or name in only]


def rounds(results: Results, what: str, who: list[Contender], count: int, measure: Measure) -> None:
    """Measure everybody ``count`` times; a contender that fails in a round is told and left out of that round."""
    order = list(who)
    for number in range(count):
        if number % 2 == 0:
            random.shuffle(order)
        else:
            order.reverse()  # what drifts with time then favours nobody
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for contender in order:
            try:
                found[contender.name] = measure(contender)
            except rows.Failed as error:
                results.failures.append(f"{what}, round {number + 1}: {error}")
        results.add(found)
        sys.stderr.write(f"\r{what}: round {number + 1} of {count} ")
        sys.stderr.flush()
    sys.stderr.write("\n")


def measure_all(results: Results, who: list[Contender], tools: rows.Tools, *, quick: bool) -> None:
    """All rows, in the order of the table."""
    seconds, count = (0.6, 5) if quick else (2.0, 12)
    normal = [contender for contender in who if contender.name != "haproxy-splice"]
    proxies = [contender for contender in normal if contender.command is not None]
    rounds(results, "connections", normal, count, lambda c: rows.connect(tools, c, seconds))
    rounds(results, "requests", normal, 4 if quick else count, lambda c: rows.keepalive(tools, c, seconds))
    slowest = min((results.median(c.name, "request_rate") for c in proxies), default=10000.0)
    rate = max(100.0, LATENCY_SHARE * slowest)
    results.notes["latency_rate_per_second"] = rate
    rounds(results, "latency", normal, 4 if quick else 10, lambda c: rows.latency(tools, c, seconds * 1.5, rate))
    rounds(results, "bulk", who, 3 if quick else 10, lambda c: rows.bulk(tools, c, seconds))
    count = 3 if quick else 10
    clients = min(STORM, make.limit() // 2)
    results.notes["storm_connections"] = clients
    rounds(results, "storm", normal, count, lambda c: rows.storm(tools, c, clients))
    spoken = [contender for contender in normal if contender.datagrams]
    rounds(results, "datagrams", spoken, count, lambda c: rows.datagrams(tools, c, seconds))
    rounds(results, "system calls", proxies, 1 if quick else 3, lambda c: rows.system_calls(tools, c, 0.5))
    held = min(WANTED_IDLE, make.limit() - 100)
    results.notes["idle_connections"] = held
    rounds(results, "memory", proxies, 1 if quick else IDLE_ROUNDS, lambda c: rows.memory(tools, c, held))


def main() -> int:
    """Run; the exit code says whether every row could be measured."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute instead of about ten")
    parser.add_argument("--workers", type=int, default=1, help="CPUs of the load balancers")
    parser.add_argument("--only", nargs="*", default=[], choices=NAMES, help="contenders to measure")
    parser.add_argument("--json", type=Path, help="where to write all samples (default: bench/results/TIME.json)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    started = time.time()
    cpus = split_cpus(arguments.workers)
    results = Results(describe())
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fl-bench-")))
        tools = rows.Tools(compile_load(directory), cpus)
        who = line_up(stack.enter_context(servers(tools, directory)), directory, cpus, arguments.only)
        for contender in who:
            stack.callback(contender.stop)
            contender.start()
        measure_all(results, who, tools, quick=arguments.quick)
    results.notes["seconds"] = round(time.time() - started, 1)
    file = arguments.json or ROOT / "bench/results" / time.strftime("%Y%m%d-%H%M%S.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results.document(), indent=1) + "\n")
    print(table(results, cpus))
    print(f"\nall samples: {file}")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
