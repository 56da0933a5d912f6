# SPDX-License-Identifier: Apache-2.0
"""Health checks that take the way of the service's packets: what clients' packets meet, probes meet (F42)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fairlead.dataplane.xdp.libbpf.hooks import TcHook
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from support.asking import http_from, udp_ask
from support.crossing import Crossing, Daemon, Server, crossing
from support.wait import until
from support.xdp import bed_object
from support.yardstick import within

pytestmark = [pytest.mark.root, pytest.mark.system]
INTERVAL_S, TIMEOUT_S, FALL = 0.2, 0.15, 2
LOOK_S = 5  # between looks at everything, which would notice each change without being told
EVERY = f"through: service, interval: 200ms, timeout: 150ms, rise: 1, fall: {FALL}"
TCP, UDP = f"{{type: tcp, {EVERY}}}", f"{{type: udp, send: ping, expect: pong, {EVERY}}}"
VIPS = ("10.9.0.100", "10.9.0.101", "fd00:9::100", "fd00:9::101")
HELD = """
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
  10.9.0.101/24: {interface: eth0, owner: static}
  fd00:9::100/64: {interface: eth0, owner: static}
  fd00:9::101/64: {interface: eth0, owner: static}
"""
DSR = f"""
services:
  web: {{listen: 10.9.0.100:80, pool: near, forwarding: dsr}}
  web6: {{listen: "[fd00:9::100]:80", pool: near6, forwarding: dsr}}
  dns: {{listen: 10.9.0.100:53, protocol: udp, pool: dns, forwarding: dsr}}
  dns6: {{listen: "[fd00:9::100]:53", protocol: udp, pool: dns6, forwarding: dsr}}
pools:
  near: {{servers: ["10.9.0.3:80", "10.9.0.4:80"], health: {TCP}}}
  near6: {{servers: ["[fd00:9::3]:80", "[fd00:9::4]:80"], health: {TCP}}}
  dns: {{servers: ["10.9.0.3:53", "10.9.0.4:53"], health: {UDP}}}
  dns6: {{servers: ["[fd00:9::3]:53", "[fd00:9::4]:53"], health: {UDP}}}
xdp: {{flow_table: 4096, interfaces: [eth0, eth1]}}
"""
TUNNEL = f"""
services:
  web: {{listen: 10.9.0.100:80, pool: far, forwarding: tunnel}}
  web6: {{listen: "[fd00:9::100]:80", pool: far6, forwarding: tunnel}}
  web4in6: {{listen: 10.9.0.101:80, pool: far4in6, forwarding: tunnel}}
  web6in4: {{listen: "[fd00:9::101]:80", pool: far6in4, forwarding: tunnel}}
  dns: {{listen: 10.9.0.100:53, protocol: udp, pool: dns, forwarding: tunnel}}
  dns6: {{listen: "[fd00:9::100]:53", protocol: udp, pool: dns6, forwarding: tunnel}}
pools:
  far: {{servers: ["10.0.7.10:80", "10.0.8.10:80"], health: {TCP}}}
  far6: {{servers: ["[fd00:7::10]:80", "[fd00:8::10]:80"], health: {TCP}}}
  far4in6: {{servers: ["[fd00:7::10]:80", "[fd00:8::10]:80"], health: {TCP}}}
  far6in4: {{servers: ["10.0.7.10:80", "10.0.8.10:80"], health: {TCP}}}
  dns: {{servers: ["10.0.7.10:53", "10.0.8.10:53"], health: {UDP}}}
  dns6: {{servers: ["[fd00:7::10]:53", "[fd00:8::10]:53"], health: {UDP}}}
xdp: {{flow_table: 4096, interfaces: [eth0, eth1]}}
"""
TEXTS = {"dsr": DSR, "tunnel": TUNNEL}


@pytest.fixture(params=TEXTS)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bed(mode: str, runtime: Path) -> Iterator[Crossing]:
    """Two servers, which have the VIPs on lo; the UDP echo listens there alone."""
    with crossing(runtime) as made:
        for name, number in (("s1", 7), ("s2", 8)):
            server = made.add_near(name, *VIPS) if mode == "dsr" else made.add_far(name, number, *VIPS)
            server.start(runtime, 80)
            server.echo(runtime, VIPS[0], 53)
            server.echo(runtime, VIPS[2], 53)
        for interface in ("eth0", "eth1"):  # so that checksums are really computed, and looked at by servers
            made.balancer.run("ethtool", "-K", interface, "tx", "off", "tso", "off", "gso", "off")
        made.ready()
        yield made


Run = Callable[[str], Daemon]


@pytest.fixture
def run(bed: Crossing, runtime: Path) -> Iterator[Run]:
    """Starts the one daemon, and waits until all servers are up."""
    made: list[Daemon] = []

    def started(text: str) -> Daemon:
        made.append(Daemon(bed.balancer, runtime, text))
        made[0].start()
        until(lambda: all_up(made[0]), 10, "all servers are up")
        return made[0]

    yield started
    for daemon in made:
        daemon.end()


def all_up(daemon: Daemon) -> bool:
    return {it["health"] for it in daemon.get("servers")} == {"up"}


def down(daemon: Daemon) -> set[str]:
    """Keys of the servers that are down."""
    return {it["key"] for it in daemon.get("servers") if it["health"] == "down"}


def of(server: str, mode: str, daemon: Daemon) -> set[str]:
    """Keys of all that a machine serves."""
    parts = {"dsr": {"s1": "9.0.3:,9::3]", "s2": "9.0.4:,9::4]"}, "tunnel": {"s1": ".7.,:7:", "s2": ".8.,:8:"}}
    return {
        it["key"] for it in daemon.get("servers") if any(part in it["key"] for part in parts[mode][server].split(","))
    }


def break_way(bed: Crossing, server: Server, mode: str, *, broken: bool) -> None:
    """No packet to a VIP is taken in any more, and all else works; or it is again."""
    if mode == "tunnel":
        bed.decapsulate(server, on=not broken)
        return
    for vip in VIPS:
        prefix = 128 if ":" in vip else 32
        server.node.ip("address", "del" if broken else "add", f"{vip}/{prefix}", "dev", "lo")


def filters(bed: Crossing) -> list[tuple[str, str]]:
    """Interface and name of every tc filter of the balancer with a program."""
    return sorted(
        (name, it["options"]["bpf_name"].partition(":")[0])
        for name in ("eth0", "eth1")
        for direction in ("ingress", "egress")
        for it in json.loads(bed.balancer.run("tc", "-j", "filter", "show", "dev", name, direction) or "[]")
        if "bpf_name" in it.get("options", {})
    )


def qdiscs(bed: Crossing) -> set[str]:
    """Interfaces of the balancer with the qdisc clsact."""
    return {it["dev"] for it in json.loads(bed.balancer.run("tc", "-j", "qdisc", "show")) if it["kind"] == "clsact"}


OURS = [(name, program) for name in ("eth0", "eth1") for program in ("fairlead_in", "fairlead_out")]


@pytest.mark.parametrize("owner", ["held", "elsewhere"])
def test_probes_take_the_way_whoever_holds_the_vip(bed: Crossing, run: Run, mode: str, owner: str) -> None:
    if owner == "elsewhere":
        other = bed.net.add("n2")
        for vip in VIPS:
            other.ip("address", "add", f"{vip}/{64 if ':' in vip else 24}", "dev", "eth0")
    daemon = run(TEXTS[mode] + (HELD if owner == "held" else ""))
    through = {it["through"] for it in daemon.get("health")}
    assert through == {f"[{vip}]:{port}" if ":" in vip else f"{vip}:{port}" for vip, port in PLACES[mode]}
    heads = daemon.command("show", "health").splitlines()[0].split()
    assert heads[:3] == ["Address", "Through", "Type"]
    assert {it["detail"] for it in daemon.get("health") if it["through"] == "10.9.0.100:80"} == {
        "through 10.9.0.100:80: connected"
    }
    labels = {"through": "10.9.0.100:80", "type": "tcp"}
    until(lambda: daemon.metric("probes_total", **labels) > 8, 10, "probes go on")
    assert daemon.metric("probe_failures_total") == 0


PLACES = {
    "dsr": [(VIPS[0], 80), (VIPS[2], 80), (VIPS[0], 53), (VIPS[2], 53)],
    "tunnel": [*((vip, 80) for vip in VIPS), (VIPS[0], 53), (VIPS[2], 53)],
}


@pytest.mark.parametrize("owner", ["held", "elsewhere"])
def test_f42_a_server_that_gets_no_packets_of_the_service_is_ejected(
    bed: Crossing, run: Run, mode: str, owner: str
) -> None:
    """Its own address answers all the time, so a probe that went there would be content."""
    daemon = run(TEXTS[mode] + (HELD if owner == "held" else ""))
    theirs = of("s1", mode, daemon)
    began = time.monotonic()
    break_way(bed, bed.servers["s1"], mode, broken=True)
    until(lambda: down(daemon) == theirs, 10, "all of s1, and nothing else, is down")
    assert within(time.monotonic() - began, INTERVAL_S * FALL + TIMEOUT_S + 0.5)
    for key in theirs:
        server = daemon.server(key)
        assert server["down_reason"] in {"timeout", "unreachable"}
        assert server["detail"].startswith("through ")
    own = "10.9.0.3" if mode == "dsr" else "10.0.7.10"
    assert bed.curl(f"http://{own}/", client=bed.balancer).startswith("s1")
    assert down(daemon) == theirs
    break_way(bed, bed.servers["s1"], mode, broken=False)
    until(lambda: all_up(daemon), 10, "it returns")


def test_a_server_needs_the_way_of_every_service(bed: Crossing, run: Run, mode: str) -> None:
    """Two services with one pool, one of nat beside them: the VIP of the second is missing on s2."""
    first, second = ("10.9.0.3:80", "10.9.0.4:80") if mode == "dsr" else ("10.0.7.10:80", "10.0.8.10:80")
    text = f"""
services:
  one: {{listen: 10.9.0.100:80, pool: p, forwarding: {mode}}}
  two: {{listen: 10.9.0.101:80, pool: p, forwarding: {mode}}}
  plain: {{listen: 10.9.0.100:81, pool: p, forwarding: nat}}
  proxied: {{listen: 0.0.0.0:8081, pool: p}}
pools:
  p: {{servers: ["{first}", "{second}"], health: [{{type: http, body: s, {EVERY}}}, {{type: tcp, interval: 200ms}}]}}
xdp: {{flow_table: 4096}}
"""
    daemon = run(text + HELD)
    found = {(it["address"], it["through"]) for it in daemon.get("health")}
    assert found == {(at, way) for at in (first, second) for way in ("10.9.0.100:80", "10.9.0.101:80", None)}
    bed.servers["s2"].node.ip("address", "del", "10.9.0.101/32", "dev", "lo")
    until(lambda: down(daemon) == {f"p/{second}"}, 10, "s2 is down")
    assert daemon.server(f"p/{second}")["detail"].startswith("through 10.9.0.101:80: ")


def test_a_closed_port_is_refused_there_and_told(bed: Crossing, run: Run, mode: str) -> None:
    """The RST of TCP and the ICMP error of UDP come from the VIP and mean the probe."""
    daemon = run(TEXTS[mode] + HELD)
    bed.servers["s1"].kill()
    theirs = of("s1", mode, daemon)
    until(lambda: down(daemon) == theirs, 10, "s1 is down")
    assert {daemon.server(key)["down_reason"] for key in theirs} == {"refused"}


def test_probes_pass_while_traffic_of_the_same_service_flows(bed: Crossing, run: Run, mode: str) -> None:
    daemon = run(TEXTS[mode] + HELD)
    before = daemon.metric("probes_total")
    for vip in (VIPS[0], VIPS[2]):
        url = f"http://{f'[{vip}]' if ':' in vip else vip}/"
        report = bed.client.run("wrk", "--timeout", "20s", "-t1", "-c20", "-d2", url)
        assert "Non-2xx" not in report
        assert "Socket errors" not in report
    assert {udp_ask(bed.client, VIPS[0], 53, b"hello").decode() for _ in range(20)} == {"s1 hello", "s2 hello"}
    assert daemon.metric("probes_total") > before + 20
    assert daemon.metric("probe_failures_total") == 0


@pytest.mark.parametrize("mode", ["tunnel"])
def test_a_segment_fits_the_tunnel_however_long_the_request(bed: Crossing, run: Run) -> None:
    """The stack fills segments for the link and knows nothing of the outer header; one among these is just too long."""
    lengths = range(1270, 1375, 15)  # and about 100 for the rest of the request; 1500 less four headers is 1388 to 1448
    probes = ", ".join(
        f"{{type: http, headers: {{X-A: {'x' * 700}, X-B: {'x' * (length - 700)}}}, {EVERY}}}" for length in lengths
    )
    run(TUNNEL.replace(TCP, f"[{probes}]") + HELD)


@pytest.mark.parametrize("mode", ["tunnel"])
def test_dsr_does_not_reach_behind_a_gateway_and_so_does_no_probe(bed: Crossing, runtime: Path) -> None:
    """Here the gateway is the server itself, which would take the packet in; the XDP program drops all of them."""
    text = f"""
services:
  web: {{listen: 10.9.0.100:80, pool: web, forwarding: dsr}}
  dns: {{listen: 10.9.0.100:53, protocol: udp, pool: dns, forwarding: dsr}}
pools:
  web: {{servers: ["10.0.7.10:80", "10.0.1.207:80"], health: {TCP}}}
  dns: {{servers: ["10.0.7.10:53", "10.0.1.207:53"], health: {UDP}}}
xdp: {{flow_table: 4096}}
{HELD}"""
    daemon = Daemon(bed.balancer, runtime, text)
    behind = ("web/10.0.7.10:80", "dns/10.0.7.10:53")
    try:
        daemon.start()
        for key in behind:
            until(lambda: daemon.server(key)["down_reason"] == "off_link", 10, "it is said why")  # noqa: B023
            assert "10.0.7.10 is behind the gateway 10.0.1.207" in daemon.server(key)["detail"]
        until(lambda: down(daemon) == set(behind), 10, "the gateway itself is a server like any other")
        link = json.loads(bed.servers["s1"].node.ip("-j", "link", "show", "eth1"))[0]["address"]
        bed.balancer.ip("neigh", "replace", "10.0.7.10", "lladdr", link, "dev", "eth1", "nud", "permanent")
        bed.balancer.ip("route", "add", "10.0.7.10/32", "dev", "eth1")
        until(lambda: all_up(daemon), LOOK_S - 1, "on the link it is reached at once")
        bed.balancer.ip("route", "del", "10.0.7.10/32", "dev", "eth1")
        until(lambda: down(daemon) == set(behind), LOOK_S - 1, "and lost again")
        until(
            lambda: {daemon.server(key)["down_reason"] for key in behind} == {"off_link"}, LOOK_S - 1, "it is said why"
        )
    finally:
        daemon.end()


@pytest.mark.parametrize("mode", ["tunnel"])
def test_types_with_more_to_say_take_the_way_too(bed: Crossing, run: Run, runtime: Path) -> None:
    """TLS in IPv4, HTTPS from IPv6 to IPv4 and back, and DNS: what they ask is asked of the VIP."""
    key = runtime / "key.pem"
    self_signed = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=vip"]
    names = ["-addext", "subjectAltName=IP:10.9.0.101"]
    subprocess.run(
        ["openssl", "req", *self_signed, *names, "-keyout", key, "-out", key.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    for server in bed.servers.values():
        server.run(runtime, "openssl", "s_server", "-accept", "443", "-cert", str(key.with_suffix(".crt")), "-key",
                   str(key), "-www", "-quiet")  # fmt: skip
        server.run(runtime, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
                   "--bind-interfaces", "--listen-address=10.9.0.101", "--address=/example.org/192.0.2.1")  # fmt: skip
    daemon = run(f"""
services:
  tls: {{listen: 10.9.0.100:443, pool: tls, forwarding: tunnel}}
  https: {{listen: 10.9.0.101:443, pool: https, forwarding: tunnel}}
  dns: {{listen: 10.9.0.101:53, protocol: udp, pool: dns, forwarding: tunnel}}
pools:
  tls: {{servers: ["10.0.7.10:443", "10.0.8.10:443"], health: {{type: tls, {EVERY}}}}}
  https:
    servers: ["[fd00:7::10]:443", "[fd00:8::10]:443"]
    health: {{type: https, tls: {{verify: true, ca_file: {key.with_suffix(".crt")}}}, {EVERY}}}
  dns: {{servers: ["10.0.7.10:53", "10.0.8.10:53"], health: {{type: dns, query: example.org, {EVERY}}}}}
xdp: {{flow_table: 4096}}
{HELD}""")
    assert {(it["type"], it["through"]) for it in daemon.get("health")} == {
        ("tls", "10.9.0.100:443"),
        ("https", "10.9.0.101:443"),
        ("dns", "10.9.0.101:53"),
    }


def test_agents_follow_each_other_and_leave_nothing(bed: Crossing, run: Run, mode: str) -> None:
    daemon = run(TEXTS[mode] + HELD)
    assert filters(bed) == OURS
    daemon.kill()
    assert filters(bed) == OURS
    daemon.start()
    until(lambda: all_up(daemon), 10, "up")
    assert filters(bed) == OURS
    assert daemon.metric("probe_failures_total") == 0
    daemon.reload(daemon.file.read_text().replace("through: service, ", ""))
    until(lambda: filters(bed) == [] and not qdiscs(bed), 10, "nobody needs them any more")
    daemon.reload(TEXTS[mode] + HELD)
    until(lambda: filters(bed) == OURS, 10, "they are back")
    daemon.kill()
    assert "tc programs of interface eth0" in daemon.command("cleanup")
    assert (filters(bed), qdiscs(bed)) == ([], set())
    daemon.start()
    assert filters(bed) == OURS
    daemon.end()
    assert (filters(bed), qdiscs(bed)) == ([], set())


@pytest.mark.parametrize("mode", ["tunnel"])
def test_what_others_have_in_tc_stays(bed: Crossing, run: Run) -> None:
    """Their qdisc on eth1, and their filter, before us and after us; ours comes back when it is taken away."""
    with bed.balancer.inside(), LoadedObject(bed_object()) as theirs:
        index = socket.if_nametoindex("eth1")
        assert TcHook.create(index)
        hook = TcHook(index, egress=True)
        hook.attach(theirs.programs["watch"], 7, 50)
        daemon = run(TUNNEL + HELD)
        assert filters(bed) == sorted([*OURS, ("eth1", "watch")])
        bed.balancer.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
        until(lambda: filters(bed) == sorted([*OURS, ("eth1", "watch")]), 10, "ours is back")
        daemon.end()
        assert (filters(bed), qdiscs(bed)) == ([("eth1", "watch")], {"eth1"})
        hook.detach(7, 50)


@pytest.mark.parametrize("mode", ["tunnel"])
def test_a_probe_that_does_not_take_the_way_says_nothing(bed: Crossing, run: Run) -> None:
    """Another program of tc ends the search before ours: the server's own address answers, and that does not count."""
    daemon = run(TUNNEL + HELD)
    with bed.balancer.inside(), LoadedObject(bed_object()) as theirs:
        hook = TcHook(socket.if_nametoindex("eth1"), egress=True)
        hook.attach(theirs.programs["end_here"], 7, 1)
        break_way(bed, bed.servers["s1"], "tunnel", broken=True)
        until(
            lambda: all("took the way" in it["detail"] for it in daemon.get("health") if it["type"] == "tcp"),
            10,
            "said",
        )
        assert down(daemon) == set(), "what this node cannot find out is not blamed on servers"
        hook.detach(7, 1)
        until(lambda: len(down(daemon)) == 6, 10, "now it is seen that s1 is broken")


UNIT = Path(__file__).parents[2] / "packaging/fairlead-xdp.conf"


# More places than the first program's tables have room for: a second program takes over.
CROWD = TUNNEL.replace("pools:", "".join(
    f"  many{n}: {{listen: [{', '.join(f'10.9.0.101:{10000 + 250 * n + m}' for m in range(250))}], pool: crowd, "
    "forwarding: nat}\n"
    for n in range(5)
) + "pools:\n  crowd: {servers: [10.0.1.77:80], health: none}", 1)  # fmt: skip


@contextlib.contextmanager
def own_bpffs(user: int) -> Iterator[int]:
    """Process id of somebody in a mount namespace with a BPF file system as the unit makes it for ``user``."""
    script = (
        "mount -t bpf -o mode=0701 bpf /sys/fs/bpf && "
        f"install -d -m 0700 -o {user} /sys/fs/bpf/fairlead && echo ready && exec sleep infinity"
    )
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            yield holder.pid
        finally:
            holder.kill()


@pytest.mark.parametrize("mode", ["tunnel"])
def test_the_rights_of_the_unit_suffice(bed: Crossing, runtime: Path) -> None:
    """For the programs, for probes by their way, and for an upgrade, which replaces one program by another."""
    (line,) = (it for it in UNIT.read_text().splitlines() if it.startswith("CapabilityBoundingSet="))
    rights = ",".join(["-all", *(f"+{name[4:].lower()}" for name in line.partition("=")[2].split())])
    user = 65534
    os.chown(runtime, user, user)
    with own_bpffs(user) as pid:
        daemon = Daemon(bed.balancer, runtime, TUNNEL)
        daemon.with_rights = (
            "nsenter", f"--mount=/proc/{pid}/ns/mnt", "setpriv", f"--reuid={user}", f"--regid={user}",
            "--clear-groups", f"--bounding-set={rights}", f"--inh-caps={rights}", f"--ambient-caps={rights}",
        )  # fmt: skip
        try:
            daemon.start()
            until(lambda: all_up(daemon), 10, "all servers are up")
            daemon.leave()
            daemon.start()
            until(lambda: all_up(daemon), 10, "all servers are up")
            daemon.reload(CROWD)
        finally:
            daemon.end()


EXAMPLE = Path(__file__).parents[2] / "examples/dsr-tunnel.yaml"


@pytest.fixture
def example_bed(runtime: Path) -> Iterator[Crossing]:
    """The addresses of the example: clients and VIPs on eth0, servers near on eth1, others behind routers there."""
    with crossing(runtime) as made:
        made.balancer.ip("address", "add", "198.51.100.1/24", "dev", "eth0")
        made.balancer.ip("address", "add", "2001:db8:20::1/64", "dev", "eth0", "nodad")
        made.client.ip("address", "add", "198.51.100.2/24", "dev", "eth0")
        made.client.ip("address", "add", "2001:db8:20::2/64", "dev", "eth0", "nodad")
        for name, number in (("n1", 10), ("n2", 11)):
            server = made.add_beside(name, number, "198.51.100.20")
            server.node.ip("address", "add", f"198.51.100.{100 + number}/24", "dev", "eth0")
            server.start(runtime, 80)
        for name, number in (("f1", 7), ("f2", 8)):
            server = made.add_far(name, number, "198.51.100.21", "2001:db8:20::21")
            server.node.ip("address", "add", f"198.51.100.{100 + number}/24", "dev", "eth0")
            server.node.ip("address", "add", f"2001:db8:20::{100 + number}/64", "dev", "eth0", "nodad")
            server.node.ip("address", "add", f"2001:db8:{number}::10/128", "dev", "lo", "nodad")
            made.balancer.ip("route", "add", f"2001:db8:{number}::/64", "via", f"fd00:1::{200 + number:x}")
            server.start(runtime, 443)
            server.echo(runtime, "198.51.100.21", 443)
        made.ready()
        yield made


def test_the_example_works_as_it_is(example_bed: Crossing, runtime: Path) -> None:
    """Four services, real traffic; probes find out what only the way of the service tells."""
    bed = example_bed
    with Daemon(bed.balancer, runtime, EXAMPLE.read_text()) as daemon:
        until(lambda: all_up(daemon), 10, "all servers are up")
        through = {(it["address"], it["through"]) for it in daemon.get("health")}
        assert through == {
            ("10.0.1.10:80", None),
            ("10.0.1.11:80", None),
            ("10.0.7.10:443", "198.51.100.21:443"),
            ("10.0.8.10:443", "198.51.100.21:443"),
            ("[2001:db8:7::10]:443", "[2001:db8:20::21]:443"),
            ("[2001:db8:8::10]:443", "[2001:db8:20::21]:443"),
        }
        for vip, port, names in (
            ("198.51.100.20", 80, {"n1", "n2"}),
            ("198.51.100.21", 443, {"f1", "f2"}),
            ("2001:db8:20::21", 443, {"f1", "f2"}),
        ):
            answers = [http_from(bed.client, source, vip, port).split() for source in range(20000, 20030)]
            assert {name for name, _ in answers} == names
            assert {client for _, client in answers} == {"2001:db8:20::2" if ":" in vip else "198.51.100.2"}
        datagrams = {udp_ask(bed.client, "198.51.100.21", 443, b"hello").decode() for _ in range(30)}
        assert datagrams == {"f1 hello", "f2 hello"}
        bed.decapsulate(bed.servers["f1"], on=False)
        theirs = {"far/10.0.7.10:443", "far6/[2001:db8:7::10]:443"}
        until(lambda: down(daemon) == theirs, 15, "f1 is ejected")
        assert {http_from(bed.client, source, "198.51.100.21", 443).split()[0] for source in range(20000, 20030)} == {
            "f2"
        }
        bed.decapsulate(bed.servers["f1"], on=True)
        until(lambda: all_up(daemon), 15, "f1 is back")
