# SPDX-License-Identifier: Apache-2.0
"""A thousand established connections outlive the node that carries them, without any state being exchanged.

examples/pair.yaml as it is: nat, an advertisement every 100 ms. Tunnel and dsr: the same but for that word.
``--log-cli-level=info`` shows what was measured.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crowd import Phase
from support.pairbed import ADDRESS, CONNECTIONS, FAR, GATEWAY, VIP, VIPS, PairBed, Scene, pair, scene
from support.wait import until
from support.yardstick import within

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.serial, pytest.mark.timeout(120)]
log = logging.getLogger("takeover")
PLANNED_MS, UNPLANNED_MS = 50.0, 500.0
ADVERT_S = 0.1
TAKEOVER_S, KNOWN_S = 1.0, 1.0  # until another owns the VIPs, and until client and servers know the new owner
GO_ON_S = 1.0  # for which the crowd goes on talking after something happened


@pytest.fixture(params=["nat", "tunnel"])
def forwarding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bed(forwarding: str, runtime: Path) -> Iterator[PairBed]:
    with pair(runtime, forwarding) as made:
        yield made


@pytest.fixture
def it(bed: PairBed) -> Iterator[Scene]:
    with scene(bed) as made:
        yield made


class Measure:
    """Notes what the crowd and the kernels saw since something happened; nothing may be lost, ever."""

    def __init__(self, name: str, it: Scene) -> None:
        self._name, self._it = name, it
        self.begin()

    def begin(self) -> None:
        """It happens now."""
        self._it.crowd.phase()
        self.at = time.monotonic()

    def end(self, what: str, limit_ms: float, *, go_on_s: float = GO_ON_S, last: bool = False) -> Phase:
        """Let the crowd go on for a while, then judge; ``last``: and hear the last answers."""
        time.sleep(go_on_s)
        phase = self._it.crowd.stop() if last else self._it.crowd.phase()
        owners = self._it.owners
        log.info(
            "%s, %s: %d of %d connections lost, gap %.1f ms at %d ms (control %.1f), %d late answers,"
            " longest silence of one connection %.0f ms; most owners at once %d, two for %.0f ms, none for %.0f ms",
            self._name, what, sum(phase.lost.values()), CONNECTIONS, phase.gap_ms, phase.gap_at_ms, phase.control_ms,
            phase.late, phase.silence_ms, owners.most(VIP, self.at), owners.shared_s(VIP, self.at) * 1000,
            owners.nobody_s(VIP, self.at) * 1000,
        )  # fmt: skip
        counters = {node.name: self._it.bed.counters_of(node) for node in self._it.bed.nodes}
        assert phase.is_whole, f"{phase}; {counters}"
        assert phase.connections == CONNECTIONS
        assert phase.gap_ms < limit_ms + phase.control_ms, f"{phase}; {counters}"
        return phase


@pytest.fixture
def measure(it: Scene, request: pytest.FixtureRequest) -> Measure:
    return Measure(request.node.name, it)


def moved_to(it: Scene, name: str, since: float) -> None:
    """Both VIPs are there, and everybody knows within a second of the last owner's last word."""
    until(lambda: all(name in it.owners.of(vip) for vip in VIPS), 10, f"{name} takes over")
    taken = time.monotonic()
    until(lambda: it.bed.knows(name), 10, "client and servers know the new owner")
    known = time.monotonic()
    log.info("client and servers knew the new owner after %.0f ms", (known - since) * 1000)
    assert within(taken - since, TAKEOVER_S)
    assert within(known - taken, KNOWN_S)


def arping(it: Scene) -> set[str]:
    """The MACs that answer for the VIP."""
    said = it.bed.client.run("arping", "-I", "eth0", "-c", "2", "-w", "2", ADDRESS, check=False)
    return {word.strip("[]()").lower() for word in said.split() if word.count(":") == 5}


@pytest.mark.parametrize("forwarding", ["nat", "tunnel", "dsr"], indirect=True)
def test_planned_moves(it: Scene, measure: Measure) -> None:
    it.one.move("release", VIP)
    moved_to(it, "two", measure.at)
    measure.end("release", PLANNED_MS)
    assert within(it.owners.shared_s(VIP, measure.at), ADVERT_S)
    assert it.owners.nobody_s(VIP, measure.at) == it.owners.nobody_s(GATEWAY, measure.at) == 0
    measure.begin()
    it.one.move("claim", VIP)
    moved_to(it, "one", measure.at)
    measure.end("claim", PLANNED_MS)
    assert within(it.owners.shared_s(VIP, measure.at), ADVERT_S)
    measure.begin()
    it.one.signal_agent(signal.SIGINT)
    moved_to(it, "two", measure.at)
    measure.end("end of the daemon", PLANNED_MS)
    measure.begin()
    it.one.stop()
    measure.end("after its end", PLANNED_MS, last=True)
    assert arping(it) == {it.two.node.mac()}


def test_everything_is_killed_and_returns(it: Scene, measure: Measure) -> None:
    """The kernel of the killed node goes on answering and forwarding beside the new owner, until the daemon returns."""
    it.one.kill_everything()
    moved_to(it, "two", measure.at)
    measure.end("SIGKILL of everything", UNPLANNED_MS)
    assert it.owners.of(VIP) == {"one", "two"}
    measure.begin()
    both = arping(it)
    log.info("two nodes answer an ARP request: %s", sorted(both))
    until(lambda: it.bed.knows("two"), 5, "the owner tells again")
    measure.end("two answer", UNPLANNED_MS)
    measure.begin()
    it.one.start()
    until(lambda: it.owners.of(VIP) == {"two"} == it.owners.of(GATEWAY), 10, "what was left behind is gone")
    until(lambda: it.one.vrrp().get("state") == "backup", 10, "it is behind")
    measure.end("return", UNPLANNED_MS, last=True)
    assert arping(it) == {it.two.node.mac()}
    assert it.bed.knows("two")


@pytest.mark.parametrize("forwarding", ["nat"], indirect=True)
def test_f11_a_better_node_returns_and_preempts(bed: PairBed, request: pytest.FixtureRequest) -> None:
    text = bed.text.replace("vrid: 51", "vrid: 51\n    preempt: true")
    with scene(bed, texts=(text, text)) as it:
        measure = Measure(request.node.name, it)
        it.one.kill_everything()
        moved_to(it, "two", measure.at)
        measure.end("SIGKILL of everything", UNPLANNED_MS)
        measure.begin()
        it.one.start()
        moved_to(it, "one", measure.at)
        until(lambda: it.owners.of(VIP) == {"one"} == it.owners.of(GATEWAY), 10, "the other one yields")
        measure.end("return", UNPLANNED_MS, last=True)
        assert arping(it) == {it.one.node.mac()}


@pytest.mark.parametrize("sides", ["p", "q", "pq"], ids=["outer", "inner", "both"])
def test_cables_are_pulled(it: Scene, measure: Measure, sides: str) -> None:
    it.bed.plug("one", connected=False, sides=sides)
    moved_to(it, "two", measure.at)
    measure.end("pulled", UNPLANNED_MS)
    assert it.owners.of(VIP) == {"two"} == it.owners.of(GATEWAY)
    measure.begin()
    it.bed.plug("one", connected=True, sides=sides)
    until(lambda: it.one.vrrp().get("state") == "backup", 10, "it is behind")
    measure.end("put back", PLANNED_MS, last=True)
    assert it.owners.most(VIP, measure.at) == 1
    assert it.bed.knows("two")


# How packets are forwarded has no part in a stall: the shortest and the longest are tried with one way.
@pytest.mark.parametrize(
    ("forwarding", "stall_s"), [("nat", 0.5), ("nat", 3.0), ("nat", 10.0), ("tunnel", 3.0)], indirect=["forwarding"]
)
def test_f01_the_vrrp_process_stalls(it: Scene, measure: Measure, stall_s: float) -> None:
    pid = it.one.vrrp_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        moved_to(it, "two", measure.at)
        measure.end("stopped", UNPLANNED_MS, go_on_s=max(0.0, measure.at + stall_s - time.monotonic()))
        measure.begin()
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: it.owners.of(VIP) == {"two"} == it.owners.of(GATEWAY), 10, "one owner")
    measure.end("goes on", PLANNED_MS, last=True)
    assert within(it.owners.shared_s(VIP, measure.at), ADVERT_S)
    assert it.owners.speakers(measure.at).keys() == {"198.51.100.2"}
    assert it.bed.knows("two")


def test_the_nodes_do_not_hear_each_other(it: Scene, measure: Measure) -> None:
    """Both own the VIPs, both forward; when they hear each other again one of them steps back at once."""
    it.bed.net.nft(
        "table bridge t {", "chain c {", "type filter hook forward priority 0;", "ip protocol 112 drop", "}", "}"
    )
    until(lambda: it.owners.of(VIP) == {"one", "two"}, 10, "two owners")
    measure.end("apart", UNPLANNED_MS)
    measure.begin()
    it.bed.net.nft("delete table bridge t")
    until(lambda: it.owners.of(VIP) == {"one"} == it.owners.of(GATEWAY), 10, "the better one is left")
    until(lambda: it.bed.knows("one"), 5, "client and servers know")
    measure.end("together", PLANNED_MS, last=True)
    assert within(it.owners.shared_s(VIP, measure.at), ADVERT_S)
    assert within(it.owners.speakers(measure.at).get("198.51.100.2", 0.0), ADVERT_S)


def test_clients_behind_a_router(bed: PairBed, request: pytest.FixtureRequest) -> None:
    with scene(bed, FAR) as it:
        measure = Measure(request.node.name, it)
        it.one.move("release", VIP)
        moved_to(it, "two", measure.at)
        phase = measure.end("release", PLANNED_MS, last=True)
        assert not phase.late, "no packet was lost"


@pytest.mark.parametrize("forwarding", ["nat"], indirect=True)
def test_a_node_whose_kernel_does_not_forward_gives_the_vip_up(it: Scene, measure: Measure) -> None:
    """Packets are dropped until the self-test is sure (3 s), and their senders repeat them at the other node."""
    it.one.node.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    until(lambda: it.owners.of(VIP) == {"two"} == it.owners.of(GATEWAY), 20, "the VIPs have moved")
    assert "ip_forward" in it.one.vrrp()["why"]
    assert "ip_forward" in it.one.get("status")["pending_error"]
    measure.end("forwarding off", 5000.0)
    measure.begin()
    it.one.node.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    until(lambda: it.one.vrrp()["priority"] == 200, 30, "it recovers")
    measure.end("forwarding on", PLANNED_MS, last=True)
    assert it.owners.of(VIP) == {"two"}, "and leaves a good owner in place"
