# SPDX-License-Identifier: Apache-2.0
"""Tables that are too small, floods, reused ports and reused ids, with real traffic (F25, F26, F28, F30)."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.asking import http_from
from support.crossing import Crossing, Daemon, crossing
from support.load import Steady, load, loading
from support.wait import until
from support.yardstick import within

pytestmark = [pytest.mark.root, pytest.mark.system]
VIP = "10.9.0.100"
TEXT = """
services:
  web: {{listen: 10.9.0.100:80, pool: web, forwarding: nat}}
  echo: {{listen: 10.9.0.100:7, protocol: udp, pool: echo, forwarding: nat}}
pools:
  web: {{servers: ["10.0.1.10:8080", "10.0.1.11:8080", "10.0.1.12:8080"], health: none, drain_timeout: 60s}}
  echo: {{servers: ["10.0.1.10:7", "10.0.1.11:7", "10.0.1.12:7"], health: none}}
vips:
  10.9.0.100/24: {{interface: eth0, owner: static}}
xdp: {{flow_table: {flows}}}
"""


@pytest.fixture
def bed(runtime: Path) -> Iterator[Crossing]:
    with crossing(runtime) as made:
        for number in (10, 11, 12):
            server = made.add_server(f"s{number}", number)
            server.start(runtime)
            server.run(runtime, str(load()), "echo", f"s{number}", "7")
        made.add_client("evil")
        made.ready()
        yield made


@pytest.fixture
def started(bed: Crossing, runtime: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon(bed.balancer, runtime, TEXT.format(flows=getattr(request, "param", 65536))) as daemon:
        yield daemon


@pytest.mark.parametrize("started", [1024], indirect=True)
def test_f25_a_table_for_a_thousand_flows_serves_five_thousand_without_a_misroute(
    bed: Crossing, started: Daemon
) -> None:
    with Steady(bed.client, VIP, 7, 5_000, 5_000) as steady:
        until(lambda: bed.counters().get("NEW_FLOW", 0) > 20_000, 20, "each flow was forgotten several times")
    outcome = steady.outcome
    assert outcome.sent > 15_000
    assert (outcome.lost, outcome.moved) == (0, 0), f"{outcome}: {bed.counters()}"
    until(lambda: started.metric("xdp_occasions_total", occasion="new_flow") > 20_000, 10, "it is a metric")


def connected(count: int) -> list[socket.socket]:
    """Idle keep-alive connections to the VIP."""
    found = []
    for _ in range(count):
        sock = socket.create_connection((VIP, 80), timeout=5)
        found.append(sock)
    return found


def all_answer(socks: list[socket.socket]) -> None:
    """Each connection asks once, and gets its answer."""
    for sock in socks:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    for sock in socks:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("started", [16384], indirect=True)
def test_f26_a_flood_of_syns_hurts_neither_those_who_are_connected_nor_those_who_come(
    bed: Crossing, started: Daemon
) -> None:
    """200,000 SYNs, twelve times what the table holds, from sources that do not exist."""
    attacker = bed.net.nodes["evil"]
    with bed.client.inside(), ExitStack() as stack:
        old = [stack.enter_context(sock) for sock in connected(500)]
        all_answer(old)
        started.change("web/10.0.1.10:8080", admin="drain")  # its connections are known to the flow table alone
        flood = subprocess.Popen(
            loading(attacker, "flood", VIP, 80, 20_000, 200_000, "198.18.0.0"), stdout=subprocess.PIPE
        )
        good, tries, took = 0, 0, []
        try:
            while flood.poll() is None:
                all_answer(old)
                for _ in range(20):
                    tries += 1
                    begun = time.monotonic()
                    try:
                        with socket.create_connection((VIP, 80), timeout=0.9) as fresh:
                            all_answer([fresh])
                            good += 1
                    except TimeoutError:
                        continue
                    took.append(time.monotonic() - begun)
        finally:
            flood.kill()
            told = flood.communicate()[0]
        all_answer(old)
    assert json.loads(told)["sent"] >= 200_000
    assert tries >= 100
    assert good / tries > 0.99, f"{good} of {tries}: {bed.counters()}"
    counters = bed.counters()
    assert counters["NEW_FLOW"] + counters.get("NEW_STATELESS", 0) >= 200_000
    until(lambda: started.metric("xdp_occasions_total", occasion="new_flow") > 100_000, 10, "it is a metric")


@pytest.mark.timeout(120)
def test_f28_a_port_that_is_used_again_leaves_a_draining_server_at_once(bed: Crossing, started: Daemon) -> None:
    ports = range(20_000, 20_200)
    first = {port: http_from(bed.client, port, VIP, 80).split()[0] for port in ports}
    (victim,) = {name for name in first.values() if name == first[20_000]}
    key = f"web/10.0.1.{victim.removeprefix('s')}:8080"
    theirs = next(port for port, name in first.items() if name == victim)
    started.change(key, admin="drain")
    took, names = [], []
    for _ in range(200):
        begun = time.monotonic()
        names.append(http_from(bed.client, theirs, VIP, 80).split()[0])
        took.append((time.monotonic() - begun) * 1000)
    assert victim not in names
    assert within(statistics.median(took) / 1000, 0.005), took
    # A SYN that was lost is sent again after a second: none was.
    assert max(took) < 900, took
