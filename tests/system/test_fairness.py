# SPDX-License-Identifier: Apache-2.0
"""An attacker with one address does no harm to other clients."""

from __future__ import annotations

import logging
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support import attacker
from support.processes import Daemon, Nginx, free_port
from support.wait import until

pytestmark = [pytest.mark.system, pytest.mark.serial, pytest.mark.timeout(180)]
log = logging.getLogger("fairness")

IDLE = 10_000
ATTACKER = "127.0.0.66"
WINDOWS, REQUESTS = 15, 200


def configuration(port: int, server: str, limits: str) -> str:
    return f"""\
services:
  web: {{listen: "127.0.0.1:{port}", pool: web, limits: {limits}}}
pools:
  web: {{servers: ["{server}"], health: none}}
"""


@contextmanager
def attack(port: int, idle: int) -> Iterator[None]:
    """All the attacker's connections are there during the block."""
    command = [sys.executable, attacker.__file__, str(port), ATTACKER, str(idle)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def request_s(port: int) -> float:
    """One honest request on a connection of its own: how long it takes."""
    begin = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while s.recv(65536):
            pass
    return time.perf_counter() - begin


def p99_s(port: int) -> float:
    """The median of the 99th percentiles of many windows: one hiccup of the machine spoils one window."""
    windows = []
    for _ in range(WINDOWS):
        times = sorted(request_s(port) for _ in range(REQUESTS))
        windows.append(times[REQUESTS * 99 // 100])
    return statistics.median(windows)


@pytest.fixture
def site(runtime: Path) -> Iterator[tuple[Daemon, int]]:
    port = free_port()
    with ExitStack() as stack:
        nginx = stack.enter_context(Nginx(runtime, "a", extra="client_header_timeout 600s;"))
        (nginx.directory / "data" / "large").write_bytes(bytes(4 << 20))
        (nginx.directory / "data" / "data").mkdir()
        (nginx.directory / "data" / "data" / "large").write_bytes(bytes(4 << 20))
        daemon = Daemon(runtime, configuration(port, nginx.address, "{}"))
        stack.enter_context(daemon)
        yield daemon, port


def active(daemon: Daemon) -> int:
    return int(str(daemon.show("services")[0]["active"]))


def test_f38_ten_thousand_hostile_connections_do_not_slow_an_honest_client(site: tuple[Daemon, int]) -> None:
    daemon, port = site
    p99_s(port)  # warm
    calm = p99_s(port)
    with attack(port, IDLE):
        until(lambda: active(daemon) >= IDLE + 2 * attacker.SLOW, 30, "all hostile connections are there")
        attacked = p99_s(port)
    until(lambda: active(daemon) == 0, 30, "all hostile connections are gone")
    after = p99_s(port)
    figures = f"p99 calm {calm * 1e3:.2f} ms, attacked {attacked * 1e3:.2f} ms, after {after * 1e3:.2f} ms"
    log.info(figures)
    assert attacked <= 1.5 * max(calm, after), figures


def test_with_a_limit_the_attacker_is_kept_out_and_others_come_in(site: tuple[Daemon, int]) -> None:
    daemon, port = site
    daemon.file.write_text(daemon.file.read_text().replace("limits: {}", "limits: {connections_per_source: 50}"))
    daemon.reload()
    with attack(port, 0):
        until(lambda: active(daemon) == 50, 30, "as many as may are there")
        assert request_s(port) < 5
        [service] = daemon.show("services")
        assert service["rejected"] == {"source_connections": 2 * attacker.SLOW - 50}
