# SPDX-License-Identifier: Apache-2.0
"""Runs a program on restored packets, many at a time, and measures it beside others.

A sample is one BPF_PROG_TEST_RUN of a few thousand packets (about a millisecond: longer ones collect timer ticks).
Samples of all contenders of a row are taken in turns, in a random order each round.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.dataplane.xdp.libbpf.programs import Program

GOLDEN = 0.6180339887498949
SHORT, LONG = 64, 128  # bytes of a template
ETHERNET = 14
PORTION = 50_000  # packets of one test run that fills a table
ZERO = bytes(4)


@dataclass(frozen=True)
class Traffic:
    """Packets of ``flows`` flows: one frame whose source varies. ``address_at`` and ``port_at`` are offsets."""

    frame: bytes
    flows: int = 1
    address_at: int = 26
    port_at: int = 34
    base_address: int = 0x0A400000  # 10.64.0.0

    @property
    def template(self) -> bytes:
        """The frame, padded to what the harness restores."""
        return self.frame.ljust(SHORT if len(self.frame) <= SHORT else LONG, b"\0")

    def holds(self, packet: bytes) -> bool:
        """Whether an IP packet is one of these: the same bytes but for what varies from flow to flow."""
        wanted, got = bytearray(self.template), bytearray(self.template[:ETHERNET] + packet)
        if self.flows > 1:
            for start, size in ((self.address_at, 4), (self.port_at, 2)):
                wanted[start : start + size] = got[start : start + size] = bytes(size)
        return wanted == got


def stride_of(flows: int) -> int:
    """A step that meets every flow once, and none after its neighbour."""
    step = int(flows * GOLDEN) | 1
    while math.gcd(step, flows) != 1:
        step += 2
    return step if flows > 1 else 1


class Contender:
    """A program behind the harness; ``prepare`` is called before each of its test runs."""

    def __init__(
        self,
        name: str,
        harness: Path,
        program: Program,
        traffic: Traffic,
        ifindex: int,
        *,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.traffic, self.ifindex, self.prepare = name, traffic, ifindex, prepare
        self.sent = 0  # packets, not counting those of `fill`
        self._loaded: list[LoadedObject] = []
        self._fill = self._open(harness, program, 1)
        self._run = self._open(harness, program, stride_of(traffic.flows))

    def _open(self, harness: Path, program: Program, stride: int) -> Program:
        frame = self.traffic.template
        constants = {
            "frame_bytes": len(frame),
            "template_words": 8 if len(frame) == SHORT else 16,
            "flows": self.traffic.flows,
            "stride": stride,
            "address_at": self.traffic.address_at,
            "port_at": self.traffic.port_at,
            "base_address": self.traffic.base_address,
        }
        loaded = LoadedObject(harness, constants=constants)
        self._loaded.append(loaded)
        loaded.maps["template"].put(ZERO, frame.ljust(LONG, b"\0"))
        loaded.maps["under_test"].put(ZERO, program.descriptor.to_bytes(4, "little"))
        return loaded.programs["reset"]

    def fill(self, rounds: int = 3) -> tuple[int, bytes]:
        """Send every flow, in order, ``rounds`` times (at least once); verdict and bytes of the last packet."""
        total = self.traffic.flows * rounds
        for sent in range(0, total, PORTION):
            self.prepare()
            run = self._fill.run(self.traffic.template, ifindex=self.ifindex, repeat=min(PORTION, total - sent))
        return run.verdict, run.packet

    def sample(self, packets: int) -> int:
        """Mean time of a packet in ns, harness included."""
        self.prepare()
        self.sent += packets
        return self._run.run(self.traffic.template, ifindex=self.ifindex, repeat=packets).nanoseconds

    def last(self) -> tuple[int, bytes]:
        """Verdict and bytes of one more packet: a program that passes or drops must not look fast."""
        self.prepare()
        self.sent += 1
        run = self._run.run(self.traffic.template, ifindex=self.ifindex)
        return run.verdict, run.packet

    def close(self) -> None:
        """Unload the harness."""
        for loaded in self._loaded:
            loaded.close()


def measure(contenders: Sequence[Contender], samples: int, packets: int) -> Mapping[str, list[int]]:
    """Samples of all contenders, taken in turns."""
    taken: dict[str, list[int]] = {contender.name: [] for contender in contenders}
    order = list(contenders)
    for contender in order:
        contender.sample(packets)
    for _ in range(samples):
        random.shuffle(order)
        for contender in order:
            taken[contender.name].append(contender.sample(packets))
    return taken


def lower_quartile(values: Sequence[int]) -> float:
    """What a packet takes when nothing interrupts: interrupts and neighbours only ever add."""
    return statistics.quantiles(values, n=4)[0]
