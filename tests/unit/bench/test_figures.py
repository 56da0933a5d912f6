# SPDX-License-Identifier: Apache-2.0
"""The benchmark's arithmetic, and that its load generator takes nothing but whole replies for success."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.machine import Cpus, cpu_seconds, pss_bytes, split_cpus, tree
from bench.ratio import paired
from bench.report import PROXIES, ROWS, remarks, table, verdict
from bench.results import Results
from bench.run import compile_load
from support.processes import accepts, free_port
from support.wait import until

CONNECTIONS = next(row for row in ROWS if row.name == "conn_rate")
LATENCY = next(row for row in ROWS if row.name == "p99_us")
CPUS = Cpus(frozenset({0}), frozenset({1}))


def results(**series: list[float]) -> Results:
    """One row, ``conn_rate``, of several contenders."""
    gathered = Results({"kernel": "test"})
    for figures in zip(*series.values(), strict=True):
        gathered.add({name: {"conn_rate": value} for name, value in zip(series, figures, strict=True)})
    return gathered


def test_ratios_are_paired_so_that_drift_cancels() -> None:
    ratio = paired([110.0, 220.0, 55.0, 440.0], [100.0, 200.0, 50.0, 400.0])
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.1, 1.1, 1.1))


def test_a_noisy_ratio_has_a_wide_interval() -> None:
    ratio = paired([80.0, 120.0] * 6, [100.0] * 12)
    assert ratio is not None
    assert ratio.low == pytest.approx(0.8)
    assert ratio.high == pytest.approx(1.2)


def test_no_round_no_ratio() -> None:
    assert paired([], []) is None
    assert paired([1.0], [0.0]) is None


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([120.0] * 6, "win, bar 0.85 met"),
        ([102.0] * 6, "even, bar 0.85 met"),
        ([90.0] * 6, "loss, bar 0.85 met"),
        ([80.0] * 6, "loss, bar 0.85 MISSED"),
    ],
)
def test_a_win_needs_the_interval_and_a_loss_is_called_one(ours: list[float], expected: str) -> None:
    assert verdict(CONNECTIONS, paired(ours, [100.0] * 6)) == expected


def test_less_is_better_for_latency() -> None:
    assert verdict(LATENCY, paired([50.0] * 6, [100.0] * 6)) == "win, bar 1.3 met"
    assert verdict(LATENCY, paired([140.0] * 6, [100.0] * 6)) == "loss, bar 1.3 MISSED"


def test_losing_rows_void_controls_and_failures_are_printed() -> None:
    gathered = results(fairlead=[80.0] * 4, haproxy=[100.0] * 4, **{"fairlead-again": [70.0] * 4})
    gathered.failures.append("bulk, round 1: nginx: 3 errors")
    text = "\n".join([table(gathered, PROXIES), *remarks(gathered, CPUS)])
    assert "0.80 (0.80-0.80)" in text
    assert "loss, bar 0.85 MISSED" in text
    assert "1.14 void" in text
    assert "failed: bulk, round 1: nginx: 3 errors" in text


def test_added_latency_is_the_difference_within_a_round() -> None:
    gathered = Results({})
    gathered.add({"direct": {"p50_us": 40.0}, "fairlead": {"p50_us": 100.0}})
    gathered.add({"direct": {"p50_us": 80.0}, "fairlead": {"p50_us": 150.0}})
    assert gathered.values("fairlead", "p50_added_us") == [60.0, 70.0]
    assert gathered.values("direct", "p50_added_us") == []


def test_the_balancer_gets_cpus_of_its_own_where_there_are_any() -> None:
    cpus = split_cpus(1)
    assert len(cpus.balancer) == 1
    assert cpus.load


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_load(tmp_path_factory.mktemp("load"))


@pytest.fixture
def server(load: Path) -> Iterator[int]:
    """Port of the benchmark's real server."""
    port = free_port()
    with subprocess.Popen([load, "serve", "127.0.0.1", str(port)], stdout=subprocess.DEVNULL) as process:
        until(lambda: accepts("127.0.0.1", port), 5, "the server accepts")
        yield port
        process.kill()


def run(load: Path, *words: object) -> dict[str, float]:
    command = [str(load), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, input="", timeout=30)
    result: dict[str, float] = json.loads(done.stdout)
    return result


@pytest.mark.system
@pytest.mark.parametrize(
    ("mode", "arguments"),
    [
        ("connect", (0.2, 4)),
        ("requests", (0.2, 4, 64)),
        ("requests", (0.2, 4, 1024)),
        ("rate", (0.2, 4, 500)),
        ("rate", (0.2, 4, 500, 1024)),
        ("bulk", (0.2, 2)),
        ("hold", (20,)),
        ("storm", (50,)),
        ("datagrams", (0.2, 4, 4)),
    ],
)
def test_every_mode_works_against_a_good_server(
    load: Path, server: int, mode: str, arguments: tuple[float, ...]
) -> None:
    result = run(load, mode, "127.0.0.1", server, *arguments)
    assert result["done"] >= 20
    assert result["errors"] == 0


@pytest.mark.system
@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 4000])
@pytest.mark.parametrize(("mode", "arguments"), [("connect", (0.1, 2)), ("requests", (0.1, 2, 64))])
def test_a_reply_that_is_not_the_whole_one_is_an_error(
    load: Path, reply: bytes, mode: str, arguments: tuple[float, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(4096)
                    peer.sendall(reply)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        result = run(load, mode, "127.0.0.1", listening.getsockname()[1], *arguments)
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert result["done"] == 0
    assert result["errors"] > 0


@pytest.mark.system
def test_a_process_is_measured_with_its_children(server: int, load: Path) -> None:
    with subprocess.Popen(["sh", "-c", f"{load} serve 127.0.0.1 0 & wait"], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        pids = tree(parent.pid)
        assert len(pids) == 2
        assert cpu_seconds(pids) > 0
        assert pss_bytes(pids) > 100_000
        subprocess.run(["kill", *map(str, pids)], check=True)
