# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.packet [--quick] [--only B1] [--peer-obj FILE]``: what the XDP program costs per packet."""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from bench.packet.harness import Contender, Traffic, lower_quartile, measure  # noqa: E402
from bench.packet.katran import check_layout  # noqa: E402
from bench.packet.opponent import Opponent  # noqa: E402
from bench.packet.results import Result, report  # noqa: E402
from bench.packet.rows import ESTABLISHED, ROWS, Row, tell_crowd  # noqa: E402
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject  # noqa: E402
from fairlead.dataplane.xdp.libbpf.programs import Program  # noqa: E402
from fairlead.errors import FairleadError  # noqa: E402
from support.xdp import (  # noqa: E402
    OUTSIDE,
    Bed,
    bed_object,
    build_links,
    compiled,
    own_namespace,
    program_object,
    sized,
)

PACKETS = 8000  # of a sample, at least


def packets_for(row: Row, flows: int) -> int:
    """Of a sample: with many established flows so many that what is in the caches is the contender's own."""
    return max(PACKETS, flows * 2 // 5) if row.rounds == ESTABLISHED else PACKETS


def entries_for(flows: int) -> int:
    """Size of a flow table, everybody's: twice the flows, from 65 536 to 2 097 152."""
    return 1 << max(16, min(2 * flows - 1, 2_097_151).bit_length())


class Bench:
    """The namespace's programs, and one row after the other."""

    def __init__(self, samples: int, peer: Path | None, cpu: int) -> None:
        self.samples, self.peer, self.cpu = samples, peer, cpu
        self.harness = compiled(ROOT / "bench/packet/harness.bpf.c")
        self.floors = LoadedObject(self.harness)

    def row(self, row: Row, flows: int) -> Result:
        """Measure one row at one number of flows."""
        with ExitStack() as stack:
            traffic = row.traffic(flows)
            ifindex = socket.if_nametoindex(OUTSIDE.name)

            def contender(name: str, program: Program, prepare: Callable[[], None] = lambda: None) -> Contender:
                made = Contender(name, self.harness, program, traffic, ifindex, prepare=prepare)
                stack.callback(made.close)
                return made

            racers = [contender("floor", self.floors.programs["swap_macs"])]
            racers.append(contender("access", self._access(stack, traffic, flows)))
            for name in ("ours", "again"):
                bed = self._bed(stack, row, flows)
                racers.append(contender(name, bed.program))
                self._fill_and_check(row, racers[-1])
            opponent = self._opponent(stack, row, flows)
            if opponent:
                racers.append(contender("peer", opponent.katran.program, opponent.prepare))
                if row.rounds:
                    racers[-1].fill(row.rounds)
                opponent.start()
            packets = packets_for(row, flows)
            taken = {name: lower_quartile(values) for name, values in measure(racers, self.samples, packets).items()}
            for racer in racers[2:4]:
                self._check(row, racer.last(), racer)
            if opponent:
                opponent.check(racers[-1])
            return self._judge(row, flows, taken)

    def _access(self, stack: ExitStack, traffic: Traffic, flows: int) -> Program:
        """The floor with one access to as much memory as a flow table of this size has."""
        entries = entries_for(flows)
        constants = {"memory_mask": entries - 1, "address_at": traffic.address_at, "port_at": traffic.port_at}
        loaded = stack.enter_context(LoadedObject(self.harness, constants=constants, max_entries={"memory": entries}))
        return loaded.programs["one_access"]

    def _bed(self, stack: ExitStack, row: Row, flows: int) -> Bed:
        sizes, constants = sized(entries_for(flows))
        bed = Bed(LoadedObject(program_object(), constants=constants, max_entries=sizes), self.cpu)
        stack.callback(bed.close)
        row.prepare(bed)
        tell_crowd(bed, flows)
        return bed

    def _fill_and_check(self, row: Row, racer: Contender) -> None:
        if row.rounds:
            self._check(row, racer.fill(row.rounds), racer)

    def _check(self, row: Row, last: tuple[int, bytes], racer: Contender) -> None:
        verdict, packet = last
        wanted = (row.verdict, len(racer.traffic.template) + row.grows)
        assert (verdict, len(packet)) == wanted, f"{row.name}: {racer.name} gave {(verdict, len(packet))}, not {wanted}"

    def _opponent(self, stack: ExitStack, row: Row, flows: int) -> Opponent | None:
        if self.peer is None or row.peer is None:
            return None
        opponent = Opponent(self.peer, row.peer, entries_for(flows), self.cpu)
        stack.callback(opponent.katran.close)
        return opponent

    def _judge(self, row: Row, flows: int, taken: dict[str, float]) -> Result:
        floor, ours = taken["floor"], taken["ours"]
        bar, met = "", None
        if row.bar is not None and flows in (row.flows[0], row.flows[-1]):
            most = row.bar[0] if flows == row.flows[0] else row.bar[1]
            bar, met = f"<= {most:.2f} x floor", ours / floor <= most
        if row.over is not None:
            bar, met = f"<= floor + {row.over:.0f} ns", ours - floor <= row.over
        peer, peer_bar = taken.get("peer"), row.peer.bar if row.peer else None
        return Result(
            row.suite, row.name, flows, floor, taken["access"], ours, taken["again"], bar, met, peer, peer_bar
        )


def main() -> int:
    """Measure, print, and write the raw figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer samples")
    arguments.add_argument("--only", default="", help="rows of one suite, B1 to B6")
    arguments.add_argument("--flows", type=int, default=0, help="only this number of flows")
    arguments.add_argument("--peer-obj", type=Path, help="Katran's balancer object, built elsewhere")
    arguments.add_argument("--output", type=Path, default=ROOT / "bench/results/packet.json")
    chosen = arguments.parse_args()
    if chosen.peer_obj:
        try:
            check_layout(chosen.peer_obj)
        except FairleadError as error:
            arguments.error(str(error))
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    results: list[Result] = []
    with own_namespace(), LoadedObject(bed_object()) as stub:
        links = build_links(stub)
        bench = Bench(60 if chosen.quick else 300, chosen.peer_obj, cpu)
        for row in ROWS:
            for flows in row.flows:
                if row.suite.startswith(chosen.only) and chosen.flows in (0, flows):
                    results.append(bench.row(row, flows))
                    print(".", end="", flush=True, file=sys.stderr)
        for link in links:
            link.close()
    print(file=sys.stderr)
    report(results)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"kernel": platform.release(), "cpu": platform.processor(), "at": time.strftime("%FT%TZ", time.gmtime())}
    chosen.output.write_text(json.dumps({"machine": machine, "rows": [asdict(r) for r in results]}, indent=1))
    return 0 if all(r.met is not False and r.beats is not False for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
