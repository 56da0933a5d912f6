# SPDX-License-Identifier: Apache-2.0
"""A simulated LAN of VRRP routers on a virtual clock: delay, loss, partitions, stalls and releases, all by plan.

Each node has its own queue of what arrived. A stalled node neither reads nor acts; when it goes on it first reads
all that waits, as the real process does, and then looks at its timer.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from ipaddress import IPv4Address

from fairlead.model.net import IPAddress
from fairlead.protocols.vrrp.machine import Announce, Moved, Parameters, Send, VirtualRouter, VrrpState
from fairlead.protocols.vrrp.packet import GROUP_V4, Advertisement, decode, encode

VIP = IPv4Address("198.51.100.10")


@dataclass
class Node:
    """One router on the LAN."""

    machine: VirtualRouter
    source: IPAddress
    waiting: list[tuple[bytes, IPAddress]] = field(default_factory=list)
    stalled_until: float = 0.0
    alive: bool = True
    announced_at: list[float] = field(default_factory=list)
    moves: list[tuple[float, Moved]] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """Whether it holds the address: a stalled or slow node does, a dead one does not."""
        return self.alive and self.machine.state is VrrpState.ACTIVE


class Lan:
    """Routers 10.0.0.1, 10.0.0.2 ... with the given parameters; all at moment 0."""

    def __init__(self, parameters: list[Parameters], *, delay_s: float = 0.001) -> None:
        self.now = 0.0
        self.delay_s = delay_s
        self.lost: Callable[[int, int], bool] = lambda _from, _to: False
        self.parts: list[int] = [0] * len(parameters)  # nodes hear each other within one part
        self.nodes = [Node(VirtualRouter(p), p.source) for p in parameters]
        self._tie = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self.owners: list[tuple[float, list[int]]] = []

    def start(self, *numbers: int) -> None:
        """Start these nodes, or all."""
        for number in numbers or range(len(self.nodes)):
            self.nodes[number].machine.startup(self.now)
            self.act(number)

    def at(self, moment: float, what: Callable[[], None]) -> None:
        """Do ``what`` at ``moment``."""
        heapq.heappush(self._queue, (moment, next(self._tie), what))

    def stall(self, number: int, duration_s: float) -> None:
        """The node's process does not run for so long."""
        self.nodes[number].stalled_until = max(self.nodes[number].stalled_until, self.now + duration_s)
        self.at(self.nodes[number].stalled_until, lambda: self._run(number))

    def kill(self, number: int) -> None:
        """The node vanishes without a word."""
        self.nodes[number].alive = False
        self._note()

    def run_until(self, moment: float) -> None:
        """Let everything happen that happens up to ``moment``."""
        while True:
            timers = [
                (max(timer, node.stalled_until), number)
                for number, node in enumerate(self.nodes)
                if node.alive and (timer := node.machine.get_timer()) is not None
            ]
            next_timer = min(timers, default=(float("inf"), 0))
            next_event = self._queue[0][0] if self._queue else float("inf")
            if min(next_timer[0], next_event) > moment:
                self.now = moment
                return
            if next_event <= next_timer[0]:
                self.now, _, what = heapq.heappop(self._queue)
                what()
            else:
                self.now = next_timer[0]
                self._run(next_timer[1])

    def act(self, number: int) -> None:
        """Carry out what a command on this node's machine asked for."""
        node = self.nodes[number]
        for effect in node.machine.take_effects():
            if isinstance(effect, Send):
                data = encode(effect.advertisement, node.source, GROUP_V4)
                for other in range(len(self.nodes)):
                    if other != number and self.parts[other] == self.parts[number] and not self.lost(number, other):
                        self.at(self.now + self.delay_s, partial(self._arrive, other, data, node.source))
            elif isinstance(effect, Moved):
                node.moves.append((self.now, effect))
            elif isinstance(effect, Announce):
                node.announced_at.append(self.now)
        self._note()

    def active(self, part: int | None = None) -> set[int]:
        """Nodes that hold the address, in one part or everywhere."""
        return {n for n, node in enumerate(self.nodes) if node.active and part in (None, self.parts[n])}

    def _arrive(self, number: int, data: bytes, source: IPAddress) -> None:
        if self.nodes[number].alive:
            self.nodes[number].waiting.append((data, source))
            self._run(number)

    def _run(self, number: int) -> None:
        node = self.nodes[number]
        if not node.alive or self.now < node.stalled_until:
            return
        waiting, node.waiting = node.waiting, []
        for data, source in waiting:
            node.machine.receive_advertisement(_understood(data, source), source, self.now)
        node.machine.handle_timer(self.now)
        self.act(number)

    def _note(self) -> None:
        now_active = [n for n, node in enumerate(self.nodes) if node.alive and node.machine.state is VrrpState.ACTIVE]
        if not self.owners or self.owners[-1][1] != now_active:
            self.owners.append((self.now, now_active))


@cache
def _understood(data: bytes, source: IPAddress) -> Advertisement:
    """What an advertisement says; most were said before."""
    return decode(data, source, GROUP_V4, 255)


def router(number: int, *, priority: int = 100, interval_cs: int = 10, **more: object) -> Parameters:
    """Parameters of node ``number``, counted from 0."""
    source = IPv4Address("10.0.0.1") + number
    return Parameters(51, priority, interval_cs, (VIP,), source, **more)  # type: ignore[arg-type]
