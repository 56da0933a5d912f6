# SPDX-License-Identifier: Apache-2.0
"""Local ports: the same port serves connections to different servers, so few are enough for many."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.netns import Lan
from support.vipnode import VipNode
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(120)]

ACCEPTS = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
listening = [socket.create_server((f"10.9.0.{n}", 8080), backlog=512) for n in map(int, sys.argv[1:])]
import select
kept = []
while True:
    for s in select.select(listening, [], [])[0]:
        kept.append(s.accept()[0])
"""


def test_f36_a_hundred_local_ports_carry_a_thousand_connections(net: Lan, runtime: Path) -> None:
    """Ten servers, 100 ports: no connection fails for want of a port."""
    hosts = range(100, 110)
    with ExitStack() as stack:
        balancer, client = net.add("lb"), net.add("client")
        farm = net.add("farm", [f"10.9.0.{n}/24" for n in hosts])
        balancer.run("sysctl", "-q", "net.ipv4.ip_local_port_range=40000 40099")
        process = subprocess.Popen(farm.command(sys.executable, "-c", ACCEPTS, *map(str, hosts)))
        stack.callback(process.wait)
        stack.callback(process.kill)
        servers = ", ".join(f'"10.9.0.{n}:8080"' for n in hosts)
        daemon = VipNode(
            balancer,
            runtime,
            f"services: {{s: {{listen: '{balancer.address}:80', pool: p, scheduler: lc, idle_timeout: 60s}}}}\n"
            f"pools: {{p: {{servers: [{servers}], health: none}}}}\n",
        )
        stack.enter_context(daemon)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(4096, before[0]), max(4096, before[1])))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with client.inside():
            made = [stack.enter_context(socket.socket()) for _ in range(1000)]
        for s in made:
            s.connect((balancer.address, 80))
        until(lambda: sum(it["active"] for it in daemon.get("servers")) == 1000, 20, "all are established")
        assert sum(it["connections_total"] for it in daemon.get("servers")) == 1000
        assert sum(it["connect_failures_total"] for it in daemon.get("servers")) == 0
        assert daemon.get("services")[0]["rejected"] == {}
