# SPDX-License-Identifier: Apache-2.0
"""The main job with real servers and clients: nothing a client can notice, whatever happens behind the VIP."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.processes import Daemon, Nginx, free_port, wrk
from support.traffic import Traffic
from support.wait import until
from support.yardstick import within

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

INTERVAL_S, RISE, FALL = 0.2, 2, 3


class Site:
    """Three nginx servers and a load balancer in front of them."""

    def __init__(self, directory: Path, servers: list[Nginx]) -> None:
        self.port = free_port()
        self.servers = {server.name: server for server in servers}
        self.daemon = Daemon(directory, self.configuration())

    def configuration(self, *, names: tuple[str, ...] = ("a", "b", "c"), scheduler: str = "rr", more: str = "") -> str:
        lines = "\n".join(f"      - {{address: {self.servers[name].address}, name: {name}}}" for name in names)
        return f"""\
services:
  web:
    listen: 127.0.0.1:{self.port}
    pool: web
    scheduler: {scheduler}
{more}
pools:
  web:
    servers:
{lines}
    health:
      {{type: http, path: /, interval: 200ms, down_interval: 200ms, timeout: 200ms, rise: {RISE}, fall: {FALL}}}
    drain_timeout: 60s
"""

    def server(self, name: str) -> dict[str, object]:
        return next(view for view in self.daemon.show("servers") if view["name"] == name)


@pytest.fixture
def site(runtime: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        servers = [stack.enter_context(Nginx(runtime, name)) for name in "abc"]
        site = Site(runtime, servers)
        stack.enter_context(site.daemon)
        yield site


def test_curl_reaches_every_server(site: Site) -> None:
    names = set()
    for _ in range(6):
        done = subprocess.run(
            ["curl", "-sS", "--max-time", "5", f"http://127.0.0.1:{site.port}/"],
            capture_output=True,
            text=True,
            check=True,
        )
        names.add(done.stdout.strip())
    assert names == {"a", "b", "c"}


def test_killed_server_costs_nothing_after_its_verdict_and_returns_in_time(site: Site) -> None:
    with Traffic("127.0.0.1", site.port) as traffic:
        until(lambda: len(traffic.answers) > 200, 20, "traffic flows")
        site.servers["b"].kill()
        killed = time.monotonic()
        until(lambda: site.server("b")["health"] == "down", 10, "b is down")
        until(lambda: len([a for a in traffic.answers if a.began > killed + 2]) > 200, 20, "more traffic")
        (event,) = [event for event in site.daemon.show("events") if event["kind"] == "health_down"]
        verdict = float(str(event["at"])) - time.time() + time.monotonic()
        due_s = INTERVAL_S * FALL + INTERVAL_S
        assert within(verdict - killed, due_s)
        assert traffic.failures(max(verdict, killed + due_s)) == []
        assert traffic.served_by("b", killed) == []

        site.servers["b"].start()
        started = time.monotonic()
        until(lambda: traffic.served_by("b", started), 10, "b gets requests again")
        first = min(answer.began for answer in traffic.served_by("b", started))
        # One more interval until the next probe begins, and jitter; half a second for two busy cores.
        assert within(first - started, INTERVAL_S * (RISE + 1) * 1.1 + 0.5)


def test_draining_under_load_loses_nothing(site: Site) -> None:
    with Traffic("127.0.0.1", site.port) as short, Traffic("127.0.0.1", site.port, long=True, threads=9) as long:
        until(lambda: {a.server for a in long.answers} == {"a", "b", "c"}, 20, "long connections on all servers")
        site.daemon.cli("drain", "web/a")
        drained = time.monotonic()
        until(lambda: len([a for a in short.answers if a.began > drained]) > 300, 20, "traffic after the drain")
        assert short.served_by("a", drained) == []
        assert long.served_by("a", drained) != [], "established connections stay on the drained server"
        assert site.server("a")["idle_reason"] == "drain"
        site.daemon.cli("ready", "web/a")
        until(lambda: short.served_by("a", drained), 10, "a gets requests again")
    assert short.failures() == []
    assert long.failures() == []


def test_f28_a_port_that_is_used_again_is_a_new_flow_and_avoids_a_draining_server(site: Site) -> None:
    site.daemon.cli("drain", "web/a")
    source, slowest = free_port(), 0.0
    for _ in range(200):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT: free at once
            s.settimeout(5)
            s.bind(("127.0.0.1", source))
            begin = time.monotonic()
            s.connect(("127.0.0.1", site.port))
            slowest = max(slowest, time.monotonic() - begin)
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = s.recv(65536)
            while not answer.endswith((b"a\n", b"b\n", b"c\n")):
                answer += s.recv(65536)
            assert not answer.endswith(b"a\n")
    assert slowest < 0.9, "a SYN was dropped and sent again"  # a second later


def test_maint_ends_the_connections_of_its_server_only(site: Site) -> None:
    with Traffic("127.0.0.1", site.port, long=True, threads=9) as long:
        until(lambda: {a.server for a in long.answers} == {"a", "b", "c"}, 20, "long connections on all servers")
        before = time.monotonic()
        site.daemon.cli("maint", "web/a")
        after = time.monotonic()
        until(lambda: len([a for a in long.answers if a.began > after]) > 100, 20, "traffic after maint")
        assert long.served_by("a", after) == []
    failed = long.failures()
    assert 1 <= len(failed) <= 9
    assert all(answer.ended >= before for answer in failed)


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
def test_f35_100_reloads_under_load_lose_nothing(site: Site, long: bool) -> None:
    with (
        Traffic("127.0.0.1", site.port, long=long) as traffic,
        wrk(f"http://127.0.0.1:{site.port}/", seconds=60, close=not long) as load,
    ):
        until(lambda: len(traffic.answers) > 50, 20, "traffic flows")
        for turn in range(100):
            more = f"    retries: {turn % 5}" if turn % 2 else f"    allow: [127.0.0.0/8, 10.{turn}.0.0/16]"
            site.daemon.file.write_text(site.configuration(more=more))
            site.daemon.reload()
        load.send_signal(2)
        report = load.communicate(timeout=20)[0]
    assert "Socket errors" not in report, report
    assert traffic.failures() == []


def test_a_pool_replaced_as_a_whole_loses_nothing(site: Site) -> None:
    site.daemon.file.write_text(site.configuration(names=("a",)))
    site.daemon.reload()
    with Traffic("127.0.0.1", site.port) as traffic:
        for names in (("b", "c"), ("a",), ("c",), ("a", "b")):
            site.daemon.file.write_text(site.configuration(names=names))
            site.daemon.reload()
            switched = time.monotonic()
            until(lambda: len([a for a in traffic.answers if a.began > switched]) > 50, 20, "traffic")  # noqa: B023
            assert {a.server for a in traffic.answers if a.began > switched} == set(names)
    assert traffic.failures() == []


def test_agent_killed_under_load_loses_nothing_and_its_successor_adopts_the_workers(site: Site) -> None:
    workers = site.daemon.worker_pids()
    with Traffic("127.0.0.1", site.port) as short, Traffic("127.0.0.1", site.port, long=True) as long:
        until(lambda: len(short.answers) > 100 and len(long.answers) > 100, 20, "traffic flows")
        site.daemon.kill()
        killed = time.monotonic()
        until(lambda: len([a for a in short.answers if a.began > killed]) > 300, 20, "traffic without an agent")
        site.daemon.start()
        assert site.daemon.worker_pids() == workers
        site.daemon.cli("drain", "web/a")
        drained = time.monotonic()
        until(lambda: len([a for a in short.answers if a.began > drained]) > 100, 20, "traffic under the new agent")
        assert short.served_by("a", drained) == []
    assert short.failures() == []
    assert long.failures() == []


def test_verdicts_and_run_time_states_survive_the_agent(site: Site) -> None:
    site.servers["b"].kill()
    until(lambda: site.server("b")["health"] == "down", 10, "b is down")
    site.daemon.cli("drain", "web/a")
    site.daemon.cli("weight", "web/c", "7")
    with Traffic("127.0.0.1", site.port) as traffic:
        until(lambda: len(traffic.answers) > 20, 20, "traffic flows")
        began = time.monotonic()
        site.daemon.kill()
        site.daemon.start()
        until(lambda: len([a for a in traffic.answers if a.began > began]) > 200, 20, "traffic")
        assert {a.server for a in traffic.answers if a.began > began} == {"c"}
    assert site.server("a")["admin"] == "drain"
    assert site.server("c")["weight"] == 7
    assert traffic.failures() == []


def test_invalid_file_changes_nothing_and_says_why(site: Site) -> None:
    with Traffic("127.0.0.1", site.port) as traffic:
        site.daemon.file.write_text(site.configuration().replace("scheduler: rr", "scheduler: robin"))
        done = site.daemon.cli("reload", check=False)
        assert done.returncode == 3
        assert f"{site.daemon.file}:5:16" in done.stderr
        assert "scheduler" in done.stderr
        until(lambda: len(traffic.answers) > 100, 20, "traffic goes on")
    assert traffic.failures() == []


def test_f50_a_file_that_changes_during_reloads_is_applied_as_it_was_validated(site: Site) -> None:
    versions = {names: site.configuration(names=names).encode() for names in (("a",), ("b",), ("a", "b", "c"))}
    digests = {hashlib.sha256(text).hexdigest(): set(names) for names, text in versions.items()}
    end = threading.Event()

    def swap() -> None:
        for text in itertools.cycle(versions.values()):
            if end.is_set():
                return
            new = site.daemon.directory / "new.yaml"
            new.write_bytes(text)
            new.replace(site.daemon.file)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = set()
        for _ in range(60):
            site.daemon.reload()
            digest = str(json.loads(site.daemon.ask("GET", "/v1/status")[1])["config_digest"])
            servers = json.loads(site.daemon.ask("GET", "/v1/servers")[1])
            configured = {view["name"] for view in servers if view["idle_reason"] != "removed"}
            assert configured == digests[digest]
            seen.add(digest)
    finally:
        end.set()
        swapper.join()
    assert len(seen) > 1, "the file did change"


def test_f44_1000_reloads_leak_nothing(site: Site) -> None:
    def turn(count: int) -> None:
        for number in range(count):
            names = ("a", "b", "c") if number % 2 else ("a", "b")
            site.daemon.file.write_text(site.configuration(names=names, more=f"    retries: {number % 5}"))
            site.daemon.reload()

    turn(200)
    pids = [site.daemon.pid, *site.daemon.worker_pids()]
    descriptors = [_fewest_descriptors(pid) for pid in pids]
    memory = [_resident_kb(pid) for pid in pids]
    turn(1000)
    until(
        lambda: all(_fewest_descriptors(pid) <= before for before, pid in zip(descriptors, pids, strict=True)),
        10, "none of them has more descriptors than before",
    )  # fmt: skip
    for before, pid in zip(memory, pids, strict=True):
        assert _resident_kb(pid) <= before * 1.05


def _fewest_descriptors(pid: int) -> int:
    """Without those of probes and requests that are under way at one moment or another."""
    return min(len(list(Path(f"/proc/{pid}/fd").iterdir())) for _ in range(200))


def _resident_kb(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty:"))
