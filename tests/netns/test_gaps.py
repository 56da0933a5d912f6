# SPDX-License-Identifier: Apache-2.0
"""How long nobody answers at a VIP when it moves, with an advertisement every 100 ms."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.echo import Outcome, ask, echo
from support.netns import Lan, Node
from support.vrrp import Fairlead, instance, vip
from support.wait import until
from support.yardstick import within

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.serial]
VIP = "10.9.0.100/24"
ADDRESS = "10.9.0.100"
log = logging.getLogger("gaps")
PLANNED_S, UNPLANNED_S = 0.05, 0.5


Figure = Callable[[Outcome], None]


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Notes what was measured; ``--log-cli-level=info`` shows it."""
    name = request.node.name

    def note(outcome: Outcome) -> None:
        log.info(
            "%s: gap %.1f ms (control %.1f), %d questions lost",
            name, outcome.gap_s * 1000, outcome.control_s * 1000, outcome.lost,
        )  # fmt: skip

    return note


class Bed:
    """Two nodes of one priority, the VIP at ``one``, and a client that has learned where it is."""

    def __init__(self, net: Lan, one: Fairlead, two: Fairlead, client: Node) -> None:
        self.net, self.one, self.two, self.client = net, one, two, client

    def owned_by(self, *names: str) -> bool:
        return [name for name in self.net.owners(VIP) if name != "client"] == list(names)


@pytest.fixture
def bed(net: Lan, runtime: Path) -> Iterator[Bed]:
    nodes = [net.add(name) for name in ("one", "two", "client")]
    vips = [vip(VIP)]
    one = Fairlead(nodes[0], runtime / "one", vips, [instance(priority=100)])
    two = Fairlead(nodes[1], runtime / "two", vips, [instance(priority=100)])
    with echo(*nodes[:2]), one:
        until(lambda: one.state() == "active", 10, "one owns it")
        with two:
            until(lambda: two.state() == "backup", 10, "two is behind")
            yield Bed(net, one, two, nodes[2])


def test_planned_release(bed: Bed, figure: Figure) -> None:
    outcome = ask(bed.client, ADDRESS, lambda: bed.one.send("release", "pair"), after_s=1.0)
    figure(outcome)
    assert outcome.last == "two"
    assert outcome.gap_s < PLANNED_S + outcome.control_s
    until(lambda: bed.owned_by("two"), 10, "one owner")


def test_planned_end(bed: Bed, figure: Figure) -> None:
    outcome = ask(bed.client, ADDRESS, lambda: bed.one.send("quit"), after_s=1.0)
    figure(outcome)
    assert outcome.last == "two"
    assert outcome.gap_s < PLANNED_S + outcome.control_s
    until(lambda: bed.owned_by("two"), 10, "one owner")


def test_claim(bed: Bed, figure: Figure) -> None:
    outcome = ask(bed.client, ADDRESS, lambda: bed.two.send("claim", "pair"), after_s=1.0)
    figure(outcome)
    assert outcome.last == "two"
    assert outcome.gap_s < PLANNED_S + outcome.control_s
    until(lambda: bed.owned_by("two"), 10, "one owner")


def test_the_cable_is_pulled(bed: Bed, figure: Figure) -> None:
    outcome = ask(bed.client, ADDRESS, lambda: bed.one.node.plug(connected=False), after_s=1.5)
    figure(outcome)
    assert outcome.last == "two"
    assert outcome.gap_s < UNPLANNED_S + outcome.control_s
    until(lambda: bed.owned_by("two"), 10, "the node without a cable has given it up")
    bed.one.node.plug(connected=True)
    until(lambda: bed.one.state() == "backup", 10, "it is a backup when the cable is back")
    assert bed.owned_by("two")


def test_sigkill(bed: Bed, figure: Figure) -> None:
    """The dead node's kernel goes on answering until the other one takes the address over."""
    outcome = ask(bed.client, ADDRESS, bed.one.kill, after_s=1.5)
    figure(outcome)
    assert outcome.last == "two"
    assert outcome.gap_s < UNPLANNED_S + outcome.control_s
    until(lambda: bed.client.neighbour(ADDRESS) == bed.two.node.mac(), 10, "the client knows the new owner")


@pytest.mark.parametrize("stall_s", [0.5, 3.0, 10.0])
def test_f01_a_stall(bed: Bed, stall_s: float, figure: Figure) -> None:
    """While it stalls the other one takes over; when it goes on it steps back without having said a word."""
    pid = bed.one.pid
    os.kill(pid, signal.SIGSTOP)
    outcome = ask(bed.client, ADDRESS, lambda: None, before_s=0, after_s=stall_s)
    figure(outcome)
    sent = next(it.sent_total for it in bed.one.hear().instances)
    os.kill(pid, signal.SIGCONT)
    began = time.monotonic()
    until(lambda: bed.owned_by("two"), 10, "one owner after it goes on")
    assert within(time.monotonic() - began, 0.5)
    after = ask(bed.client, ADDRESS, lambda: None, before_s=0, after_s=1.0)
    until(lambda: bed.one.state() == "backup", 10, "it knows")
    assert (outcome.last, after.last) == ("two", "two")
    for each in (outcome, after):
        assert each.gap_s < UNPLANNED_S + each.control_s
    report = next(it for it in bed.one.hear().instances)
    # What it sent between its last report and the stall is counted, too: one second's worth at most.
    assert report.sent_total <= sent + 11
    assert "stalled" in report.why or "preempted" in report.why
    assert ("vrrp_stall" in bed.one.kinds()) == (stall_s > 2)
