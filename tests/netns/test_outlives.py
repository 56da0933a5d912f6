# SPDX-License-Identifier: Apache-2.0
"""Packets go on while the agent dies, restarts and is replaced by other versions, newer and older (F19)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crossing import Crossing, Daemon, crossing
from support.load import Steady, load
from support.versions import OTHER_LAYOUT, OTHER_OBJECT, version
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]
# Schedulers by turn: a flow that is forgotten goes to any server.
TEXT = """
services:
  echo: {listen: 10.9.0.100:7, protocol: udp, pool: echo, forwarding: nat, scheduler: rr}
pools:
  echo: {servers: ["10.0.1.10:7", "10.0.1.11:7"], health: none}
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
xdp: {flow_table: 4096}
"""
ROUNDS = 50
PER_SECOND = 10_000
FLOWS = 64


@pytest.fixture
def bed(runtime: Path) -> Iterator[Crossing]:
    with crossing(runtime) as made:
        for number in (10, 11):
            made.add_server(f"s{number}", number).run(runtime, str(load()), "echo", f"s{number}", "7")
        made.ready()
        yield made


@pytest.fixture
def versions(tmp_path: Path) -> dict[str, Path | None]:
    return {
        "this": None,
        "object": version(tmp_path / "object", OTHER_OBJECT),
        "layout": version(tmp_path / "layout", OTHER_LAYOUT),
    }


# How the agent ends, and which version follows.
TURNS = [
    ("kill", "this"),
    ("leave", "this"),
    ("kill", "object"),  # an upgrade
    ("leave", "this"),  # and back
    ("kill", "layout"),  # an upgrade to other maps
    ("leave", "layout"),
    ("leave", "this"),  # and back
]


def programs(bed: Crossing) -> list[str]:
    """What ``ip`` says of XDP on the outer and on the inner interface."""
    return [line.strip() for name in ("eth0", "eth1") for line in bed.balancer.ip("link", "show", name).splitlines()
            if "prog/xdp" in line]  # fmt: skip


@pytest.mark.timeout(240)
def test_f19_no_packet_is_lost_while_agents_die_and_follow_each_other(
    bed: Crossing, runtime: Path, versions: dict[str, Path | None]
) -> None:
    daemon = Daemon(bed.balancer, runtime, TEXT)
    daemon.start()
    carried = 0
    try:
        until(lambda: len(programs(bed)) == 2, 10, "two programs")
        with Steady(bed.client, "10.9.0.100", 7, PER_SECOND, FLOWS) as steady:
            for turn in range(ROUNDS):
                end, following = TURNS[turn % len(TURNS)]
                daemon.kill() if end == "kill" else daemon.leave()
                daemon.source = versions[following]
                daemon.start()
                assert len(programs(bed)) == 2
                assert not daemon.events("flows_forgotten")
                carried += len(daemon.events("flows_carried"))
        outcome = steady.outcome
        assert outcome.per_second > 0.95 * PER_SECOND, outcome
        assert outcome.lost == 0, f"{outcome}: {bed.counters()}"
        assert outcome.moved == 0, f"{outcome}: {bed.counters()}"
        assert carried == 2 * (ROUNDS // len(TURNS))
    finally:
        daemon.source = None
        daemon.end()
    assert programs(bed) == []
