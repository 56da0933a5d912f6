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
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from bench.packet import katran  # noqa: E402
from bench.packet.harness import Contender, lower_quartile, measure  # noqa: E402
from bench.packet.rows import ROWS, SERVERS, Row  # noqa: E402
from fairlead.dataplane.xdp.libbpf import LoadedObject  # noqa: E402
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

AA_TOLERANCE = 0.01
PACKETS = 8000
ZERO = bytes(4)


@dataclass(frozen=True)
class Result:
    """One measured row; times in ns a packet, harness included."""

    suite: str
    name: str
    flows: int
    floor: float
    ours: float
    again: float  # the same program loaded a second time
    peer: float | None
    bar: str
    met: bool | None

    @property
    def void(self) -> bool:
        """Whether two equal programs differ by more than is allowed."""
        return abs(self.again / self.ours - 1) > AA_TOLERANCE


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

            def contender(name: str, program: object) -> Contender:
                made = Contender(name, self.harness, program, traffic, ifindex)  # type: ignore[arg-type]
                stack.callback(made.close)
                return made

            racers = [contender("floor", self.floors.programs["swap_macs"])]
            for name in ("ours", "again"):
                bed = self._bed(stack, row, flows)
                racers.append(contender(name, bed.program))
                self._fill_and_check(row, racers[-1])
            if self.peer is not None and row.peer:
                racers.append(contender("peer", self._peer(stack, row, flows)))
                racers[-1].fill(row.rounds)
            taken = {name: lower_quartile(values) for name, values in measure(racers, self.samples, PACKETS).items()}
            for racer in racers[1:3]:
                self._check(row, racer.last(), racer)
            return self._judge(row, flows, taken)

    def _bed(self, stack: ExitStack, row: Row, flows: int) -> Bed:
        entries = 1 << max(16, min(2 * flows - 1, 2_097_151).bit_length())
        sizes, constants = sized(entries)
        bed = Bed(LoadedObject(program_object(), constants=constants, max_entries=sizes), self.cpu)
        stack.callback(bed.close)
        row.prepare(bed)
        return bed

    def _fill_and_check(self, row: Row, racer: Contender) -> None:
        if row.rounds:
            self._check(row, racer.fill(row.rounds), racer)

    def _check(self, row: Row, last: tuple[int, bytes], racer: Contender) -> None:
        verdict, packet = last
        wanted = (row.verdict, len(racer.traffic.template) + row.grows)
        assert (verdict, len(packet)) == wanted, f"{row.name}: {racer.name} gave {(verdict, len(packet))}, not {wanted}"

    def _peer(self, stack: ExitStack, row: Row, flows: int) -> object:
        assert self.peer is not None
        loaded = katran.load(self.peer, flows)
        stack.callback(loaded.close)
        servers = [IPv4Address("10.0.1.10") + number for number in range(SERVERS)]
        protocol = 17 if "UDP" in row.name else 6
        katran.fill(loaded.maps, IPv4Address("10.0.0.100"), protocol, servers, self.cpu)
        return katran.program(loaded)

    def _judge(self, row: Row, flows: int, taken: dict[str, float]) -> Result:
        floor, ours = taken["floor"], taken["ours"]
        bar, met = "", None
        if row.bar is not None and flows in (row.flows[0], row.flows[-1]):
            most = row.bar[0] if flows == row.flows[0] else row.bar[1]
            bar, met = f"<= {most:.2f} x floor", ours / floor <= most
        if row.over is not None:
            bar, met = f"<= floor + {row.over:.0f} ns", ours - floor <= row.over
        return Result(row.suite, row.name, flows, floor, ours, taken["again"], taken.get("peer"), bar, met)


def report(results: list[Result]) -> None:
    """Print the table."""
    print(f"{'':4}{'row':30}{'flows':>9}{'floor':>7}{'ours':>7}{'over':>7}{'x floor':>9}{'A/A':>7}{'peer':>7}  bar")
    for r in results:
        times = f"{r.floor:7.0f}{r.ours:7.0f}{r.ours - r.floor:7.0f}{r.ours / r.floor:9.2f}{r.again / r.ours:7.3f}"
        peer = f"{r.peer:7.0f}" if r.peer is not None else f"{'-':>7}"
        verdict = {None: "", True: "met", False: "MISSED"}[r.met]
        void = "  (void: A/A differs by more than 1 %)" if r.void else ""
        print(f"{r.suite:4}{r.name:30}{r.flows:9}{times}{peer}  {r.bar} {verdict}{void}")


def main() -> int:
    """Measure, print, and write the raw figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer samples")
    arguments.add_argument("--only", default="", help="rows of one suite, B1 to B6")
    arguments.add_argument("--flows", type=int, default=0, help="only this number of flows")
    arguments.add_argument("--peer-obj", type=Path, help="Katran's balancer object, built elsewhere")
    arguments.add_argument("--output", type=Path, default=ROOT / "bench/results/packet.json")
    chosen = arguments.parse_args()
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
    return 0 if all(r.met is not False for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
