# SPDX-License-Identifier: Apache-2.0
"""The tables of the rows between namespaces, and what must be known to read them. Pure."""

from __future__ import annotations

from bench.machine import Cpus
from bench.report import AA_TOLERANCE, disturbances, machine_line
from bench.results import Layout, Results, Row

OURS, AGAIN = "xdp-nat", "xdp-nat-again"
CONNECTED = (OURS, "xdp-fullnat", "nft", "haproxy", "nginx", "fairlead", "direct", "back-to-back")
FORWARDING = (OURS, "xdp-fullnat", "xdp-dsr", "xdp-tunnel", "nft", "direct", "floor")
NAMES = tuple(dict.fromkeys((*CONNECTED, *FORWARDING, AGAIN)))
FEW, MANY = 1_000, 100_000  # flows
FEWEST = 8  # undisturbed pairs without which a row is void
FRAMES = Layout(
    (
        # The rate is bounded by what makes the frames, as the floor's shows; so the bar is on what a frame costs.
        Row("few_rate", f"B7 frames/s, {FEW:,} flows", True, None, over="nft"),
        Row("few_ns", f"B7 CPU per frame, ns, {FEW:,} flows", False, 0.333, over="nft"),
        Row("many_rate", f"B7 frames/s, {MANY:,} flows", True, None, over="nft"),
        Row("many_ns", f"B7 CPU per frame, ns, {MANY:,} flows", False, 0.333, over="nft"),
    ),
    FORWARDING,
    OURS,
    AGAIN,
    "nft",
    everybody=True,
    fewest=FEWEST,
)
CONNECTIONS = Layout(
    (
        Row("conn_rate", "B8 new connections/s", True, 0.95, over="direct"),
        Row("conn_p99_us", "B8 p99 of a connection, us", False, None, over="direct"),
        Row("conn_all_us", "B8 all CPU per connection, us", False, None, 1, over="direct"),
        Row("conn_cpu_us", "B8 balancer CPU per connection, us", False, None, 1, over="direct"),
        Row("requests_64_64", "B9 requests/s, 64 B, 64 conns", True, 0.95, over="direct"),
        Row("requests_64_64_all_us", "B9   all CPU per request, us", False, None, 1, over="direct"),
        Row("requests_64_1", "B9 requests/s, 64 B, 1 conn", True, 0.95, over="direct"),
        Row("requests_64_512", "B9 requests/s, 64 B, 512 conns", True, 0.95, over="direct"),
        Row("requests_1024_64", "B9 requests/s, 1 kB, 64 conns", True, 0.95, over="direct"),
        Row("requests_1024_64_all_us", "B9   all CPU per request, us", False, None, 1, over="direct"),
        Row("p50_us", "B9 latency p50, us", False, None, over="direct"),
        Row("p99_us", "B9 latency p99, us", False, 1.1, over="direct"),
        Row("request_cpu_us", "B9 balancer CPU per request, us", False, None, 1, over="direct"),
    ),
    CONNECTED,
    OURS,
    AGAIN,
    "direct",
    everybody=True,
    fewest=FEWEST,
)
LAYOUTS = (FRAMES, CONNECTIONS)


def remarks(results: Results, cpus: Cpus) -> list[str]:
    """What must be known to read the tables."""
    load, own = sorted(cpus.load), sorted(cpus.balancer)
    lines = [
        machine_line(results),
        "clients, balancers and servers are network namespaces joined by veth; tx checksum, TSO, GSO and GRO are off",
        "everywhere, and the clients' and servers' ends carry an XDP program that passes, for all alike",
        "direct: routed through the same middle namespace; back-to-back: one cable, no XDP; floor: XDP swaps MACs",
        f"rates and latency: what the kernel forwards is forwarded on the CPU that sent it, {load}, where clients and",
        f"servers are, too: what forwarding costs is missing there; proxies have CPU {own} for themselves",
        "all CPU: of clients, servers and balancer together, which says the same and depends less on who else runs",
        f"frames and balancer CPU: threads on CPU {own} poll the balancer's interfaces and are charged to it; GRO is",
        "on there where it brings no XDP, since a veth has NAPI by one of the two",
    ]
    if rate := results.notes.get("latency_rate_per_second"):
        lines.append(f"latency at {rate:,.0f} requests/s on 64 connections, from the moment each was due")
    lines += disturbances(results)
    lines.append(f"void: two equal contenders differ by more than {AA_TOLERANCE:.0%}; repeat on a quieter machine")
    return [*lines, *(f"failed: {failure}" for failure in results.failures)]
