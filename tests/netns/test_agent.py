# SPDX-License-Identifier: Apache-2.0
"""The whole daemon on two nodes: the VIP follows the services, outlives the agent, and carries connections."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.netns import Lan, Node
from support.vipnode import VIP, VipNode, configuration
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]
Start = Callable[[Node, str], VipNode]
PORT = 8081
SERVICE = f"""
services: {{web: {{listen: "10.9.0.100:80", pool: web}}}}
pools:
  web:
    servers: ["127.0.0.1:{PORT}"]
    health: {{type: tcp, interval: 200ms, timeout: 200ms, rise: 1, fall: 2}}
"""
_SERVER = """
import socket, sys, time
s = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
while True:
    c, _ = s.accept()
    time.sleep(float(sys.argv[3]))
    try:
        c.sendall(sys.argv[2].encode())
    except OSError:  # a probe, which has seen enough
        pass
    c.close()
"""


@contextmanager
def server(node: Node, delay_s: float = 0.0) -> Iterator[subprocess.Popen[bytes]]:
    """A real server on the node's loopback that says the node's name."""
    command = node.command(sys.executable, "-S", "-c", _SERVER, str(PORT), node.name, str(delay_s))
    process = subprocess.Popen(command)
    try:
        until(lambda: f":{PORT} " in node.run("ss", "-Htln"), 10, "the server listens")
        yield process
    finally:
        process.kill()
        process.wait()


def fetch(client: Node, address: str = "10.9.0.100") -> str:
    """What a connection to the VIP brings; empty when it fails."""
    with client.inside():
        sock = socket.socket()
    with sock:
        sock.settimeout(1.0)
        try:
            sock.connect((address, 80))
            return sock.recv(100).decode()
        except OSError:
            return ""


def two(net: Lan, daemon: Start, **keys: Any) -> tuple[VipNode, VipNode]:
    """``one`` of priority 200 owns the VIP, ``two`` of priority 100 is behind."""
    first = daemon(net.add("one"), configuration(priority=200, **keys))
    until(lambda: net.owners(VIP) == ["one"], 10, "the first owns the VIP")
    second = daemon(net.add("two"), configuration(priority=100, **keys))
    until(lambda: second.vrrp().get("state") == "backup", 10, "the second is behind")
    return first, second


def test_the_vip_follows_the_service(net: Lan, daemon: Start) -> None:
    one, second, client = net.add("one"), net.add("two"), net.add("client")
    text: dict[str, Any] = {"service": SERVICE, "follow": "[web]"}
    with server(one) as process, server(second):
        first = daemon(one, configuration(priority=200, **text))
        until(lambda: net.owners(VIP) == ["one"], 10, "one owns it")
        other = daemon(second, configuration(priority=100, **text))
        until(lambda: other.vrrp().get("state") == "backup", 10, "two is behind")
        until(lambda: fetch(client) == "one", 10, "connections reach the server of one")
        process.kill()
        process.wait()
        until(lambda: net.owners(VIP) == ["two"], 10, "the VIP has followed")
        until(lambda: fetch(client) == "two", 10, "connections reach the server of two")
        assert first.vrrp()["priority"] == 1
        assert "service web is down" in first.vip()["detail"]
        assert first.metric("vrrp_priority", instance="pair") == 1
        assert first.events("vrrp_degraded")
        status, body = first.ask("/v1/vips/10.9.0.100/claim", "POST")
        assert (status, "service web is down" in body) == (409, True)
        with server(one):
            until(lambda: first.vrrp()["priority"] == 200, 10, "it recovers after a while")
            assert net.owners(VIP) == ["two"], "and leaves a good owner in place"


def test_when_both_are_ill_there_is_still_an_owner(net: Lan, daemon: Start) -> None:
    """Neither has a server; the address stays somewhere, for what else is served there."""
    first = daemon(net.add("one"), configuration(priority=200, service=SERVICE, follow="[web]"))
    second = daemon(net.add("two"), configuration(priority=100, service=SERVICE, follow="[web]"))
    until(lambda: len(net.owners(VIP)) == 1, 8, "one owner")
    until(lambda: (first.vrrp().get("priority"), second.vrrp().get("priority")) == (1, 1), 10, "both are degraded")
    time.sleep(2.0)
    moves = [node.vrrp()["transitions_total"] for node in (first, second)]
    time.sleep(1.0)
    assert len(net.owners(VIP)) == 1
    assert [node.vrrp()["transitions_total"] for node in (first, second)] == moves, "nobody moves"


def test_carrier_of_a_tracked_interface(net: Lan, daemon: Start) -> None:
    """The VIP of the servers' side moves along, and a cut there moves both."""
    net.add_bridge("br1")
    nodes = [net.add(name) for name in ("one", "two")]
    for node in nodes:
        net.connect(node, "eth1", f"q-{node.name}", "br1")
    inner = "10.9.1.1/24"
    vips = {VIP: "eth0", inner: "eth1"}
    first = daemon(nodes[0], configuration(vips, priority=200))
    until(lambda: nodes[0].holds(inner, "eth1") and nodes[0].holds(VIP), 10, "one owns both")
    second = daemon(nodes[1], configuration(vips, priority=100))
    until(lambda: second.vrrp().get("state") == "backup", 10, "two is behind")
    net.cut("q-one")
    until(lambda: nodes[1].holds(inner, "eth1") and nodes[1].holds(VIP), 10, "two owns both")
    until(lambda: not nodes[0].holds(inner, "eth1") and not nodes[0].holds(VIP), 10, "one has neither")
    assert "eth1 has no carrier" in first.vrrp()["why"]


def test_f05_a_deleted_vip_is_counted(net: Lan, daemon: Start) -> None:
    first, _ = two(net, daemon)
    first.node.ip("address", "del", VIP, "dev", "eth0")
    until(lambda: first.node.holds(VIP), 10, "it is back")
    until(lambda: first.metric("vip_restored_total", vip=VIP) == 1, 10, "it is counted")
    assert first.events("vip_restored")


def test_f06_f07_the_vip_outlives_the_agent_and_the_next_one_adopts(net: Lan, daemon: Start) -> None:
    first, second = two(net, daemon)
    process = first.vrrp_pid()
    moves = second.vrrp()["transitions_total"]
    first.kill_agent()
    time.sleep(1.0)
    assert net.owners(VIP) == ["one"]
    first.start()
    until(first.is_active, 10, "the next agent knows")
    assert first.vrrp_pid() == process, "the process goes on"
    assert first.vrrp()["transitions_total"] == 2
    assert second.vrrp()["transitions_total"] == moves


def test_f46_a_stalled_agent_costs_no_advertisement(net: Lan, daemon: Start) -> None:
    first, second = two(net, daemon)
    os.kill(first.agent_pid(), signal.SIGSTOP)
    try:
        heard = second.vrrp()["received_total"]
        time.sleep(3.0)
        assert net.owners(VIP) == ["one"]
        until(lambda: second.vrrp()["received_total"] >= heard + 25, 10, "advertisements go on")
        assert second.vrrp()["transitions_total"] == 1
    finally:
        os.kill(first.agent_pid(), signal.SIGCONT)


def test_a_process_that_dies_is_replaced_as_a_backup(net: Lan, daemon: Start) -> None:
    first, _ = two(net, daemon)
    dead = first.vrrp_pid()
    os.kill(dead, signal.SIGKILL)
    until(lambda: net.owners(VIP) == ["two"], 10, "the other owns it, and this one has removed what was left")
    until(lambda: first.vrrp_pid() not in {0, dead}, 10, "there is another process")
    assert "started again" in first.events("vrrp_process_ended")[0]["message"]


def test_f11_a_node_that_returns_takes_nothing_over_before_its_verdicts_are_complete(net: Lan, daemon: Start) -> None:
    one, other = net.add("one"), net.add("two")
    slow = SERVICE.replace("interval: 200ms, timeout: 200ms", "interval: 2s, timeout: 1500ms").replace(
        "type: tcp", "type: http, expect: 200"
    )
    with server(other):
        second = daemon(other, configuration(priority=100, preempt="true", service=SERVICE, follow="[web]"))
        until(second.is_active, 8, "two owns it")
        # A server that takes its connections and says nothing: the verdict is complete when the timeout has passed.
        with server(one, delay_s=30.0):
            first = daemon(one, configuration(priority=200, preempt="true", service=slow, follow="[web]"))
            (verdict,) = first.events("health_down")
            until(lambda: first.events("vrrp_backup"), 10, "it takes part")
            (begin,) = first.events("vrrp_backup")
            assert begin["at"] > verdict["at"]
            time.sleep(1.0)
            assert net.owners(VIP) == ["two"], "and it knows that it should not own it"
            assert second.vrrp()["transitions_total"] == 2


def test_static_vips_stay_when_the_agent_dies_and_go_when_it_ends(net: Lan, daemon: Start) -> None:
    node, client = net.add("one"), net.add("client")
    text = f'vips: {{"{VIP}": {{interface: eth0, owner: static}}}}\n' + SERVICE
    with server(node):
        first = daemon(node, text)
        until(lambda: node.holds(VIP), 10, "it has it")
        until(lambda: fetch(client) == "one", 10, "and serves there")
        assert first.vip()["state"] == "static"
        first.kill_agent()
        assert node.holds(VIP)
        first.start()
        assert node.holds(VIP)
        status, _ = first.ask("/v1/vips/10.9.0.100/release", "POST")
        assert status == 409
        first.stop()
        assert not node.holds(VIP)
        assert first.vrrp_pid() == 0


def test_a_reload_adds_and_removes_vips_and_moves_nothing_else(net: Lan, daemon: Start) -> None:
    first, second = two(net, daemon)
    process, more = first.vrrp_pid(), "10.9.0.101/24"
    for node, priority in ((first, 200), (second, 100)):
        node.file.write_text(configuration({VIP: "eth0", more: "eth0"}, priority=priority))
        assert node.ask("/v1/reload", "POST")[0] == 200
    until(lambda: net.owners(more) == ["one"], 10, "the new one is there")
    assert net.owners(VIP) == ["one"]
    first.file.write_text(configuration(priority=200))
    assert first.ask("/v1/reload", "POST")[0] == 200
    until(lambda: net.owners(more) == [], 10, "it is gone again")
    assert first.vrrp_pid() == process
    assert first.vrrp()["transitions_total"] == 2
    first.file.write_text("services: {}\n")
    assert first.ask("/v1/reload", "POST")[0] == 200
    until(lambda: net.owners(VIP) == ["two"], 10, "an instance that is no longer configured hands over")


def test_the_command_line_shows_and_moves(net: Lan, daemon: Start) -> None:
    first, _ = two(net, daemon)
    program = (sys.executable, "-m", "fairlead")
    at = ("--socket", str(first.socket))
    until(lambda: "active" in first.node.run(*program, "show", "vips", *at), 10, "it shows the owner")
    assert "10.9.0.1 " in first.node.run(*program, "show", "vrrp", *at)
    assert first.node.run(*program, "vip", "release", VIP, *at) == f"release {VIP}\n"
    until(lambda: net.owners(VIP) == ["two"], 10, "it has moved")
    assert first.node.run(*program, "vip", "claim", "10.9.0.100", *at) == f"claim {VIP}\n"
    until(lambda: net.owners(VIP) == ["one"], 10, "it has come back")
