# SPDX-License-Identifier: Apache-2.0
"""Probes on a node whose network is as the test sets it up: in a network namespace of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

PROBE = """
import asyncio, sys
from ipaddress import ip_address
from fairlead.model.health import ProbeTarget
from fairlead.model.net import Endpoint
from fairlead.model.pool import HealthMonitor, MonitorType
from fairlead.probes.registry import probe
kind, address, port = sys.argv[1:]
target = ProbeTarget(Endpoint(ip_address(address), int(port)), HealthMonitor(MonitorType(kind), timeout_s=0.3))
result = asyncio.run(probe(target))
print(result.reason or "passed", result.detail, sep="|")
"""

PING_SOCKETS = "sysctl -qw net.ipv4.ping_group_range='0 2147483647'"
NO_PRIVILEGE = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]


def probe_in(setup: str, kind: str, address: str, port: int = 80, *, privileged: bool = True) -> list[str]:
    """Reason and detail of one probe after the shell commands ``setup`` in a fresh namespace."""
    run = ["unshare", "--net", "sh", "-ec", f'ip link set lo up; {setup}; exec "$@"', "sh"]
    if not privileged:
        run += NO_PRIVILEGE
    done = subprocess.run(
        [*run, sys.executable, "-c", PROBE, kind, address, str(port)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("|")


@pytest.mark.parametrize("kind", ["tcp", "http", "udp", "dns", "icmp"])
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_no_route_is_unreachable(kind: str, address: str) -> None:
    reason, detail = probe_in(":", kind, address)
    assert (reason, detail.rpartition(": ")[2]) == ("unreachable", "network is unreachable")


@pytest.mark.parametrize("kind", ["tcp", "icmp"])
def test_a_host_that_answers_no_arp_is_unreachable(kind: str) -> None:
    """The kernel gives up after its tries, or the deadline comes first: with one quick try it is the kernel."""
    setup = (
        "ip link add v0 type veth peer name v1; ip addr add 192.0.2.2/24 dev v0; ip link set v0 up; ip link set v1 up;"
        "sysctl -qw net.ipv4.neigh.v0.retrans_time_ms=20 net.ipv4.neigh.v0.mcast_solicit=1"
    )
    reason, detail = probe_in(setup, kind, "192.0.2.1")
    assert (reason, detail.rpartition(": ")[2]) == ("unreachable", "no route to host")


def test_a_local_prohibition_is_an_error_of_this_node() -> None:
    setup = "ip addr add 192.0.2.2/24 dev lo; ip route add prohibit 198.51.100.0/24"
    assert probe_in(setup, "tcp", "198.51.100.1")[0] == "local_error"


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_firewalls_port_unreachable_is_refused(kind: str) -> None:
    setup = (
        "nft add table inet f; nft 'add chain inet f in { type filter hook input priority 0; }';"
        "nft add rule inet f in meta l4proto { tcp, udp } th dport 80 reject with icmpx port-unreachable"
    )
    assert probe_in(setup, kind, "127.0.0.1")[0] == "refused"


def test_a_firewalls_admin_prohibited_is_unreachable() -> None:
    setup = (
        "nft add table inet f; nft 'add chain inet f in { type filter hook input priority 0; }';"
        "nft add rule inet f in tcp dport 80 reject with icmpx admin-prohibited"
    )
    assert probe_in(setup, "tcp", "127.0.0.1")[0] == "unreachable"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_icmp_needs_no_privilege_where_ping_sockets_are_allowed(address: str) -> None:
    assert probe_in(PING_SOCKETS, "icmp", address, privileged=False) == ["passed", "echo reply"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_icmp_without_any_permission_is_an_error_of_this_node(address: str) -> None:
    reason, detail = probe_in(":", "icmp", address, privileged=False)
    assert reason == "local_error"
    assert detail.endswith("ping needs a group within net.ipv4.ping_group_range, or CAP_NET_RAW")


@pytest.mark.parametrize("setup", [":", PING_SOCKETS], ids=["raw", "ping socket"])
@pytest.mark.parametrize(
    ("address", "mute"),
    [
        ("127.0.0.1", "sysctl -qw net.ipv4.icmp_echo_ignore_all=1"),
        ("::1", "sysctl -qw net.ipv6.icmp.echo_ignore_all=1"),
    ],
)
def test_icmp_no_reply_times_out(setup: str, address: str, mute: str) -> None:
    """A raw socket on loopback also sees its own request, which is no reply."""
    assert probe_in(f"{setup}; {mute}", "icmp", address) == ["timeout", "echo reply took longer than 0.3 s"]
