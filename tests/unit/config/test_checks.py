# SPDX-License-Identifier: Apache-2.0
"""What shows only when things are seen together, the table of what is still to come, and the warnings."""

from __future__ import annotations

import pytest

from fairlead.config.checks import check
from fairlead.config.findings import Findings
from fairlead.config.reader import read
from fairlead.config.tree import merge
from fairlead.config.validate import validate
from support.configs import POOL, SERVICE, assert_problem, configuration, loaded, marked, problems


def test_a_pool_that_does_not_exist() -> None:
    assert_problem(
        "services: {s: {listen: 192.0.2.9:80, pool: §wbe}}\npools: {web: {servers: [192.0.2.1:80]}}",
        "services.s.pool",
        "there is no pool `wbe`; did you mean `web`?",
    )
    assert_problem("services: {s: {listen: 192.0.2.9:80, pool: §x}}", "services.s.pool", "define it under `pools:`")


def test_a_pool_that_does_not_exist_is_told_beside_other_mistakes() -> None:
    text = "services: {s: {listen: nowhere, pool: wbe}}\npools: {web: {servers: [192.0.2.1:80]}}"
    assert [problem.path for problem in problems(text)] == ["services.s.listen", "services.s.pool"]


def test_a_pool_that_exists_but_is_wrong_is_not_called_missing() -> None:
    assert_problem("pools: {p: {servers: [§x]}}" + SERVICE, "pools.p.servers[0]", "is not an IP address")


OVERLAPS = [
    ("192.0.2.9:80", "192.0.2.9:80"),
    ("192.0.2.9:80-90", "192.0.2.9:90"),
    ("192.0.2.9:85", "192.0.2.9:80-90"),
    ('"[2001:db8::1]:80"', '"[2001:0db8::0:1]:80"'),
    ("192.0.2.9:100-200", "192.0.2.9:50-300"),
]


@pytest.mark.parametrize(("first", "second"), OVERLAPS)
def test_two_services_at_one_place(first: str, second: str) -> None:
    text = f"services:\n  a: {{listen: {first}, pool: p}}\n  b: {{listen: §{second}, pool: p}}" + POOL
    assert_problem(text, "services.b.listen", "of service `a` at fairlead.yaml:2:15")


def test_overlaps_within_a_service_and_past_narrower_neighbours() -> None:
    assert_problem(
        "services: {a: {listen: [192.0.2.9:80, §192.0.2.9:80], pool: p}}" + POOL, "services.a.listen[1]", "overlaps"
    )
    text = "services: {a: {listen: ['192.0.2.9:10-99', §192.0.2.9:20, §192.0.2.9:50], pool: p}}" + POOL
    clean, places = marked(text)
    assert [(p.line, p.column) for p in problems(clean)] == places


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("192.0.2.9:80", "192.0.2.9:81"),
        ("192.0.2.9:80", "192.0.2.8:80"),
        ("192.0.2.9:50-60", "192.0.2.9:10-20"),
        ("0.0.0.0:80", "192.0.2.9:80"),
        ("0.0.0.0:80", '"[::]:80"'),
    ],
)
def test_neighbours_that_do_not_overlap(first: str, second: str) -> None:
    loaded(f"services: {{a: {{listen: {first}, pool: p}}, b: {{listen: {second}, pool: p}}}}" + POOL)


def test_tcp_and_udp_share_a_port() -> None:
    text = "services: {a: {listen: 192.0.2.9:53, pool: p}, b: {listen: 192.0.2.9:53, protocol: udp, pool: p}}" + POOL
    services = configuration(text).services
    assert {str(it.protocol) for it in services.values()} == {"tcp", "udp"}
    assert (services["a"].idle_timeout_s, services["b"].idle_timeout_s) == (350, 60)


def test_version_1_of_the_proxy_protocol_is_not_for_udp() -> None:
    assert_problem(
        "services: {a: {listen: 192.0.2.9:53, protocol: udp, pool: p, proxy_protocol: {send: §v1}}}" + POOL,
        "services.a.proxy_protocol.send",
        "use `v2`",
    )


def test_keys_that_udp_does_not_know() -> None:
    text = "services: {a: {listen: 192.0.2.9:53, protocol: udp, pool: p, connect_timeout: 1s}}" + POOL
    assert [it.message for it in loaded(text).warnings] == ["has no effect with `protocol: udp`"]


def test_a_server_twice_in_a_pool() -> None:
    assert_problem(
        "pools: {p: {servers: [192.0.2.1:80, §192.0.2.1:80]}}" + SERVICE,
        "pools.p.servers[1]",
        "in this pool already, at fairlead.yaml:1:23",
    )
    text = "pools: {p: {servers: [{address: 192.0.2.1:80, name: a}, {address: 192.0.2.2:80, name: §a}]}}" + SERVICE
    assert_problem(text, "pools.p.servers[1].name", "`a` is in this pool already, at fairlead.yaml:1:53")
    text = "pools: {p: {servers: [{address: 192.0.2.1:80, name: a}, {address: §192.0.2.1:80, name: b}]}}" + SERVICE
    assert_problem(text, "pools.p.servers[1].address", "`192.0.2.1:80` is in this pool already")
    loaded("pools: {p: {servers: [192.0.2.1:80]}, q: {servers: [192.0.2.1:80]}}" + SERVICE)


def test_a_service_in_front_of_itself() -> None:
    assert_problem("pools: {p: {servers: [§192.0.2.9:80]}}" + SERVICE, "pools.p.servers[0]", "go in circles")
    assert_problem("pools: {p: {servers: [§192.0.2.9], health: none}}" + SERVICE, "pools.p.servers[0]", "go in circles")
    loaded("pools: {p: {servers: [192.0.2.9:81]}}" + SERVICE)


def test_engines_carry_only_their_forwarding() -> None:
    found = problems("services: {s: {listen: 192.0.2.9:80, pool: p, engine: xdp}}" + POOL)
    assert any("`xdp` cannot carry `forwarding: proxy`; use `auto` or `userspace`" in p.message for p in found)
    found = problems("services: {s: {listen: 192.0.2.9:80, pool: p, forwarding: nat, engine: userspace}}" + POOL)
    assert any("`userspace` cannot carry `forwarding: nat`" in p.message for p in found)


def test_a_proxy_opens_a_socket_per_port() -> None:
    assert_problem("services: {s: {listen: §192.0.2.9:*, pool: p}}" + POOL, "services.s.listen", "at most 4096")
    loaded("services: {s: {listen: 192.0.2.9:1000-5095, pool: p}}" + POOL)


@pytest.mark.parametrize(
    ("keys", "server", "said"),
    [
        ("forwarding: nat", '"[2001:db8::1]:80"', "`forwarding: nat` cannot bridge"),
        ("forwarding: dsr", '"[2001:db8::1]:80"', "`forwarding: dsr` cannot bridge"),
        ("transparent: true", '"[2001:db8::1]:80"', "`transparent: true` cannot bridge"),
        ("forwarding: dsr", "192.0.2.1:8080", "another port, which `forwarding: dsr` cannot rewrite"),
        ("forwarding: tunnel", "192.0.2.1:8080", "another port"),
    ],
)
def test_forwarding_that_cannot_reach_a_server(keys: str, server: str, said: str) -> None:
    text = f"services: {{s: {{listen: 192.0.2.9:80, pool: p, {keys}}}}}\npools: {{p: {{servers: [{server}]}}}}"
    found = [p for p in problems(text) if "not supported yet" not in p.message]
    assert [(p.path, p.line, p.column) for p in found] == [("services.s.pool", 1, 44)]
    assert said in found[0].message


def test_a_service_of_both_families_reaches_none_without_a_proxy() -> None:
    text = 'services: {s: {listen: [192.0.2.9:80, "[2001:db8::9]:80"], pool: p, forwarding: nat}}' + POOL
    assert sum("cannot bridge" in p.message for p in problems(text)) == 1


def test_keys_without_effect_outside_of_a_proxy() -> None:
    text = "services: {s: {listen: 192.0.2.9:80, pool: p, forwarding: nat, §retries: 1}}" + POOL
    clean, places = marked(text)
    found = Findings(["f"])
    root = read(0, clean, {}, found)
    assert root is not None
    tree = merge({0: root}, found)
    check(validate(tree, found), tree, found)
    assert found.errors() == ()
    assert [(p.line, p.column, p.message) for p in found.warnings()] == [
        (*places[0], "has no effect with `forwarding: nat`")
    ]


def test_one_port_of_several_is_enough_to_be_unreachable() -> None:
    text = "services: {s: {listen: [192.0.2.9:80, 192.0.2.9:81], pool: p, forwarding: dsr}}" + POOL
    assert sum("another port" in p.message for p in problems(text)) == 1


def test_a_proxy_bridges_families() -> None:
    loaded('pools: {p: {servers: ["[2001:db8::1]:80"]}}' + SERVICE)


def test_probes_need_a_port() -> None:
    assert_problem(
        "pools: {p: {servers: [192.0.2.1], health: §tcp}}" + SERVICE,
        "pools.p.health",
        "needs `port`, because pools.p.servers[0] has none",
    )
    loaded("pools: {p: {servers: [192.0.2.1], health: {type: tcp, port: 80}}}" + SERVICE)


def test_owners_and_followed_services_exist() -> None:
    text = """
vips:
  192.0.2.9/24: {interface: eth0, owner: §pear}
  192.0.2.10/24: {interface: eth0, owner: static}
  §192.0.2.10/25: {interface: eth0, owner: pair}
vrrp:
  pair: {interface: eth0, vrid: 51, follow: [s, §web]}
  §other: {interface: eth0, vrid: 51, version: 2, advert_interval: §100ms}
"""
    clean, places = marked(text + POOL + SERVICE)
    found = problems(clean)
    assert [(p.line, p.column) for p in found] == places, found
    assert "did you mean `pair`?" in found[0].message


def test_each_gap_has_its_place() -> None:
    text = """
services:
  s:
    listen: 192.0.2.9:80
    pool: p
    forwarding: nat
    engine: §lvs
pools:
  p:
    servers: [192.0.2.1:80]
    health: [icmp, tcp]
xdp: {mode: native}
§bgp: {x: y}
api: {listen: §127.0.0.1:9000, token_file: §/etc/token}
"""
    clean, places = marked(text)
    found = problems(clean)
    assert all("is not supported yet by this version" in p.message for p in found)
    assert [(p.line, p.column) for p in found] == places


def test_what_is_switched_off_is_no_gap() -> None:
    loaded(
        "services: {s: {listen: 192.0.2.9:80, pool: p, transparent: false, proxy_protocol: {send: none}}}\n"
        "pools: {p: {servers: [192.0.2.1:80], passive: off, agent: off, slow_start: 0s}}\n"
        "vips: {}\nvrrp: {}\nxdp: {}\nbgp:\n"
    )


WARNINGS = [
    (
        "services: {s: {listen: 192.0.2.9:80, pool: p, scheduler: §lc}}" + POOL.replace("80]", "80], slow_start: 9s"),
        "services.s.scheduler",
        "use `wlc`",
    ),
    ("pools: {p: {§servers: []}}" + SERVICE, "pools.p.servers", "no servers"),
    ("pools: {p: {§servers: [{address: 192.0.2.1:80, weight: 0}]}}" + SERVICE, "pools.p.servers", "weight 0"),
    ("pools: {p: {§servers: [{address: 192.0.2.1:80, backup: true}]}}" + SERVICE, "pools.p.servers", "backup"),
    ("pools: {p: {servers: [192.0.2.1:80], quorum: §2}}" + SERVICE, "pools.p.quorum", "all weights together (1)"),
    (
        "pools: {p: {servers: [192.0.2.1:80], health: {type: tcp, timeout: §3s}}}" + SERVICE,
        "pools.p.health.timeout",
        "longer than `interval`",
    ),
    ("pools:\n  p: {servers: [192.0.2.1:80]}\n  §q: {servers: [192.0.2.1:80]}" + SERVICE, "pools.q", "no service uses"),
    (
        "services: {s: {listen: 192.0.2.9:80, pool: p, deny: [§10.1.0.0/8]}}" + POOL,
        "services.s.deny[0]",
        "read as 10.0.0.0/8",
    ),
]


@pytest.mark.parametrize(("text", "path", "said"), WARNINGS, ids=[row[1] for row in WARNINGS])
def test_warnings(text: str, path: str, said: str) -> None:
    clean, places = marked(text)
    found = loaded(clean).warnings
    assert [(p.line, p.column, p.path) for p in found] == [(*places[0], path)]
    assert said in found[0].message


def test_a_timeout_as_long_as_the_interval_is_no_warning() -> None:
    text = "pools: {p: {servers: [192.0.2.1:80], quorum: 1, health: {type: tcp, interval: 1s, timeout: 1s}}}" + SERVICE
    assert loaded(text).warnings == ()


def test_more_than_a_worker_can_hold() -> None:
    many = "pools: {p: {servers: &s [" + ", ".join(f"10.0.{n >> 8}.{n & 255}:80" for n in range(10_000)) + "]}, "
    many += ", ".join(f"p{n}: {{servers: *s}}" for n in range(13)) + "}"
    assert [p.message for p in problems(many + SERVICE)] == ["140000 servers in all pools; at most 131071"]
    some = ", ".join(f"s{n}: {{listen: 10.1.{n >> 8}.{n & 255}:80, pool: p}}" for n in range(16_384))
    assert [p.message for p in problems(f"services: {{{some}}}" + POOL)] == ["16384 services; at most 16383"]


def test_a_configuration_without_services_is_odd_but_allowed() -> None:
    assert [p.message for p in loaded("services: {}\n").warnings] == ["no services: nothing is served"]
