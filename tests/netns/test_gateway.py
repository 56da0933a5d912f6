# SPDX-License-Identifier: Apache-2.0
"""The example of a gateway, as it is: clients know the VIP alone, the servers' gateway is the balancer."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.asking import udp_ask
from support.crossing import Crossing, Daemon, crossing
from support.daemon import inside_of
from support.wait import until
from support.xdp import ROOT

pytestmark = [pytest.mark.root, pytest.mark.system]
VIP = "198.51.100.10"
CLIENT = "198.51.100.2"


@contextmanager
def running(directory: Path) -> Iterator[tuple[Crossing, Daemon]]:
    with crossing(directory) as bed:
        bed.client.ip("address", "add", f"{CLIENT}/24", "dev", "eth0")
        bed.add_servers(10, 11, 12)
        bed.ready()
        with Daemon(bed.balancer, directory, (ROOT / "examples/gateway-nat.yaml").read_text()) as daemon:
            daemon.wait_until_up()
            yield bed, daemon


@pytest.fixture(scope="module")
def shared(directory: Path) -> Iterator[tuple[Crossing, Daemon]]:
    """For tests that leave everything as it was."""
    with running(directory) as made:
        yield made


@pytest.fixture
def bed(shared: tuple[Crossing, Daemon]) -> Crossing:
    return shared[0]


@pytest.fixture
def daemon(shared: tuple[Crossing, Daemon]) -> Daemon:
    return shared[1]


def test_curl_meets_every_server_and_they_see_the_client(bed: Crossing, daemon: Daemon) -> None:
    answers = {bed.curl(f"http://{VIP}/").strip() for _ in range(40)}
    assert answers == {f"s{number} {CLIENT}" for number in (10, 11, 12)}


def test_datagrams_meet_both_servers_that_answer_them(bed: Crossing, daemon: Daemon) -> None:
    assert {udp_ask(bed.client, VIP, 53, b"hello") for _ in range(30)} == {b"s10 hello", b"s11 hello"}


def test_wrk_gets_no_error_and_every_request_is_counted(bed: Crossing, daemon: Daemon) -> None:
    wrk = inside_of(bed.client, "wrk", "--timeout", "20s", "-t1", "-c32", "-d3s", f"http://{VIP}/")
    told = subprocess.run(wrk, capture_output=True, text=True, check=True, timeout=30).stdout
    assert "Socket errors" not in told, told
    assert "Non-2xx" not in told, told
    requests = int(re.findall(r"(\d+) requests in", told)[0])
    assert requests > 1000, told
    web = next(it for it in daemon.get("services") if it["name"] == "web")
    assert web["connections_total"] == sum(it["connections_total"] for it in web["servers"])
    until(lambda: daemon.metric("service_connections_total", service="web") >= 32, 10, "connections are counted")


def test_ten_megabytes_come_and_go_whole(bed: Crossing, runtime: Path) -> None:
    content = os.urandom(10 << 20)
    (runtime / "body").write_bytes(content)
    wanted = hashlib.sha256(content).digest()
    bed.curl(f"http://{VIP}/data/up", "-H", "Expect:", "-T", str(runtime / "body"))
    (stored,) = bed.directory.glob("s1?/data/up")
    assert hashlib.sha256(stored.read_bytes()).digest() == wanted
    for server in bed.servers.values():
        (bed.directory / server.name / "data" / "down").write_bytes(content)
    bed.curl(f"http://{VIP}/data/down", "-o", str(runtime / "got"))
    assert hashlib.sha256((runtime / "got").read_bytes()).digest() == wanted


def test_a_server_that_dies_is_left_and_taken_back(runtime: Path) -> None:
    with running(runtime) as (bed, daemon):
        bed.servers["s11"].kill()
        until(lambda: daemon.server("web/10.0.1.11:8080")["health"] == "down", 10, "it is noticed")
        assert {bed.curl(f"http://{VIP}/").split()[0] for _ in range(20)} == {"s10", "s12"}
        bed.servers["s11"].start(runtime)
        until(lambda: daemon.server("web/10.0.1.11:8080")["health"] == "up", 10, "it is back")
        until(lambda: bed.curl(f"http://{VIP}/").split()[0] == "s11", 10, "it is met again")
