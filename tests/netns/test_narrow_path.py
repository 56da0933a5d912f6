# SPDX-License-Identifier: Apache-2.0
"""A router between the balancer and a tunnel's server lets less through than both links: clients are told (F21)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crossing import Crossing, Daemon, crossing
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]
VIPS = ("10.9.0.100", "fd00:9::100")
TEXT = """
services:
  web: {listen: 10.9.0.100:80, pool: far, forwarding: tunnel}
  web6: {listen: "[fd00:9::100]:80", pool: far6, forwarding: tunnel}
  crossed: {listen: 10.9.0.101:80, pool: far6, forwarding: tunnel}
pools:
  far: {servers: ["10.0.7.10:80"], health: none}
  far6: {servers: ["[fd00:7::10]:80"], health: none}
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
  10.9.0.101/24: {interface: eth0, owner: static}
  fd00:9::100/64: {interface: eth0, owner: static}
xdp: {flow_table: 4096}
"""
NARROW = 1400


@pytest.fixture
def bed(runtime: Path) -> Iterator[Crossing]:
    with crossing(runtime) as made:
        server = made.add_behind_router("s1", 7, NARROW, *VIPS, "10.9.0.101")
        server.start(runtime, 80)
        made.ready()
        with Daemon(made.balancer, runtime, TEXT):
            for address in ("10.0.7.10", "fd00:7::10", "10.9.0.2", "fd00:9::2"):
                made.balancer.speak_to(address)  # as health checks and other traffic do: neighbours are resolved
            yield made


@pytest.mark.parametrize("vip", [*VIPS, "10.9.0.101"])
def test_f21_a_large_upload_passes_a_narrow_router_in_the_tunnels_path(bed: Crossing, runtime: Path, vip: str) -> None:
    body = runtime / "body"
    body.write_bytes(os.urandom(1 << 20))
    url = f"http://{f'[{vip}]' if ':' in vip else vip}/data/up"
    bed.curl(url, "-H", "Expect:", "-T", str(body))
    stored = runtime / "s1" / "data" / "up"
    assert hashlib.sha256(stored.read_bytes()).digest() == hashlib.sha256(body.read_bytes()).digest()
    counters = bed.counters()
    assert counters["SENT_PATH_MTU"] > 0, counters
    # The client knows now, and goes on knowing.
    outer = 40 if vip != "10.9.0.100" else 20
    until(lambda: f"mtu {NARROW - outer}" in bed.client.ip("route", "get", vip), 10, "the client's path MTU")
