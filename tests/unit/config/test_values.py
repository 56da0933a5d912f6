# SPDX-License-Identifier: Apache-2.0
"""Values that are wrong by themselves: one row per kind of error, each with its exact place."""

from __future__ import annotations

import pytest

from fairlead.config.findings import Refused
from fairlead.config.forms import parse_endpoint, plain_endpoint
from support.configs import POOL, SERVICE, assert_problem, marked, problems

SERVICE_ROWS = [
    # keys
    ("listen: 192.0.2.9:80, pool: p, §intervall: 2s", "intervall", "unknown key; allowed are: `listen`, `protocol`"),
    ("listen: 192.0.2.9:80, pool: p, §schedular: rr", "schedular", "unknown key; did you mean `scheduler`?"),
    ("listen: 192.0.2.9:80, pool: p, limits: {§conections: 1}", "limits.conections", "did you mean `connections`?"),
    # listen
    ("listen: §192.0.2.9, pool: p", "listen", "has no port"),
    ("listen: §192.0.2.9:0, pool: p", "listen", "ports are 1 to 65535"),
    ("listen: §192.0.2.9:65536, pool: p", "listen", "ports are 1 to 65535"),
    ("listen: §192.0.2.9:0080, pool: p", "listen", "ports are 1 to 65535"),
    ("listen: §192.0.2.9:90-80, pool: p", "listen", "write 80-90"),
    ("listen: §192.0.2.256:80, pool: p", "listen", "is not an IP address"),
    ("listen: §192.0.2.010:80, pool: p", "listen", "is not an IP address"),
    ("listen: §www.example.org:80, pool: p", "listen", "names are not resolved"),
    ("listen: §2001:db8::1:80, pool: p", "listen", "brackets"),
    ('listen: §"[2001:db8::1]", pool: p', "listen", "has no port"),
    ('listen: §"[2001:db8::1", pool: p', "listen", "is not ADDRESS:PORT"),
    ('listen: §"[192.0.2.9]:80", pool: p', "listen", "is not ADDRESS:PORT"),
    ('listen: §"[fe80::1%eth0]:80", pool: p', "listen", "zone"),
    ('listen: §"[::ffff:192.0.2.9]:80", pool: p', "listen", "write 192.0.2.9"),
    ("listen: §224.0.0.1:80, pool: p", "listen", "multicast"),
    ("listen: [192.0.2.9:80, §x], pool: p", "listen[1]", "is not an IP address"),
    ("listen: §[], pool: p", "listen", "at least 1"),
    ("listen: §{a: b}, pool: p", "listen", "a mapping is not allowed here"),
    ("listen: §, pool: p", "listen", "an empty value is not allowed here"),
    # enums and words
    ("listen: 192.0.2.9:80, pool: p, protocol: §tpc", "protocol", "did you mean `tcp`?"),
    ("listen: 192.0.2.9:80, pool: p, protocol: §TCP", "protocol", "did you mean `tcp`?"),
    ("listen: 192.0.2.9:80, pool: p, scheduler: §roundrobin", "scheduler", "is not one of `maglev`, `rr`"),
    ("listen: 192.0.2.9:80, pool: p, scheduler: §[rr]", "scheduler", "a list is not allowed here"),
    ("listen: 192.0.2.9:80, pool: p, transparent: §yes", "transparent", "write `true` or `false`"),
    ("listen: 192.0.2.9:80, pool: p, when_all_down: §fail_open", "when_all_down", "`reject`, `use_all`, `drop`"),
    # numbers
    ("listen: 192.0.2.9:80, pool: p, retries: §three", "retries", "whole number from 0 to 100"),
    ("listen: 192.0.2.9:80, pool: p, retries: §1e1", "retries", "not a whole number"),
    ("listen: 192.0.2.9:80, pool: p, retries: §0x10", "retries", "not a whole number"),
    ("listen: 192.0.2.9:80, pool: p, retries: §010", "retries", "not a whole number"),
    ("listen: 192.0.2.9:80, pool: p, retries: §-1", "retries", "out of range"),
    ("listen: 192.0.2.9:80, pool: p, retries: §101", "retries", "out of range"),
    ("listen: 192.0.2.9:80, pool: p, retries: §~", "retries", "an empty value is not allowed here"),
    # durations
    ("listen: 192.0.2.9:80, pool: p, connect_timeout: §5", "connect_timeout", "units are ms, s, m, h"),
    ("listen: 192.0.2.9:80, pool: p, connect_timeout: §1:30", "connect_timeout", "is not a duration"),
    ("listen: 192.0.2.9:80, pool: p, connect_timeout: §1.5s", "connect_timeout", "is not a duration"),
    ("listen: 192.0.2.9:80, pool: p, connect_timeout: §0s", "connect_timeout", "out of range"),
    ("listen: 192.0.2.9:80, pool: p, connect_timeout: §11m", "connect_timeout", "1ms to 600s"),
    ("listen: 192.0.2.9:80, pool: p, idle_timeout: §never", "idle_timeout", "or `off`"),
    # networks
    ("listen: 192.0.2.9:80, pool: p, allow: [192.0.2.0/24, §192.0.2.0/33]", "allow[1]", "0 to 32"),
    ("listen: 192.0.2.9:80, pool: p, deny: [§2001:db8::/x]", "deny[0]", "0 to 128"),
    ("listen: 192.0.2.9:80, pool: p, deny: §192.0.2.0/24", "deny", "must be a list"),
    # parts
    ("listen: 192.0.2.9:80, pool: p, persistence: §on", "persistence", "is not a duration"),
    ("listen: 192.0.2.9:80, pool: p, persistence: §null", "persistence", "write `off`"),
    ("listen: 192.0.2.9:80, pool: p, persistence: {prefix_v4: §33, timeout: 5m}", "persistence.prefix_v4", "1 to 32"),
    ("listen: 192.0.2.9:80, pool: p, §persistence: {prefix_v4: 24}", "persistence.timeout", "is required"),
    ("listen: 192.0.2.9:80, pool: p, limits: §5", "limits", "must be a mapping with keys of: `connections`"),
    ("listen: 192.0.2.9:80, pool: §Web Pool", "pool", "did you mean `web-pool`?"),
    ("listen: 192.0.2.9:80, pool: §-", "pool", "is not a name"),
]


@pytest.mark.parametrize(("keys", "path", "said"), SERVICE_ROWS, ids=[row[0] for row in SERVICE_ROWS])
def test_a_service(keys: str, path: str, said: str) -> None:
    assert_problem(f"services:\n  web: {{{keys}}}{POOL}", f"services.web.{path}", said)


SERVER_ROWS = [
    ("§192.0.2.1:x", "", "ports are 1 to 65535"),
    ("§0.0.0.0:80", "", "no address that a server can have"),
    ("§web.example:80", "", "names are not resolved"),
    ("{address: 192.0.2.1:80, weight: §257}", ".weight", "from 0 to 256"),
    ("{address: 192.0.2.1:80, name: §Web_1}", ".name", "did you mean `web-1`?"),
    ("{address: 192.0.2.1:80, state: §down}", ".state", "`ready`, `drain`, `maint`"),
    ("{address: 192.0.2.1:80, backup: §1}", ".backup", "`true` or `false`"),
    ("{address: 192.0.2.1:80, §wieght: 1}", ".wieght", "did you mean `weight`?"),
    ("§{weight: 1}", ".address", "is required"),
    ("§[192.0.2.1:80]", "", "must be a mapping with keys of: `address`"),
    ("§~", "", "must be a mapping"),
]


@pytest.mark.parametrize(("server", "path", "said"), SERVER_ROWS, ids=[row[0] for row in SERVER_ROWS])
def test_a_server(server: str, path: str, said: str) -> None:
    text = f"pools:\n  p:\n    servers:\n      - 192.0.2.7:80\n      - {server}{SERVICE}"
    assert_problem(text, f"pools.p.servers[1]{path}", said)


POOL_ROWS = [
    ("health: §htpp", "health", "did you mean `http`?"),
    ("health: {type: §ping}", "health.type", "is not one of `tcp`, `tls`"),
    ("§health: {interval: 1s}", "health.type", "is required"),
    ("health: §[]", "health", "write `none`"),
    ("health: §", "health", "must be a mapping"),
    ("health: {type: tcp, §path: /}", "health.path", "unknown key; allowed are: `type`, `interval`"),
    ("health: {type: http, §paht: /}", "health.paht", "did you mean `path`?"),
    ("health: {type: http, path: §healthz}", "health.path", "begins with /"),
    ('health: {type: http, path: §"/a\\r\\nX: y"}', "health.path", "begins with /"),
    ('health: {type: http, headers: {X-A: §"a\\nb"}}', "health.headers.X-A", "printable ASCII"),
    ("health: {type: http, headers: {§'X A': b}}", 'health.headers."X A"', "HTTP token"),
    ("health: {type: http, expect: §ok}", "health.expect", "a range such as 200-399"),
    ("health: {type: http, expect: [200, §399-200]}", "health.expect[1]", "a range such as 200-399"),
    ("health: {type: http, expect: §600}", "health.expect", "a range such as 200-399"),
    ("health: {type: https, tls: {verify: §maybe}}", "health.tls.verify", "`true` or `false`"),
    ("health: {type: tls, tls: {§verfy: true}}", "health.tls.verfy", "did you mean `verify`?"),
    ("health: {type: tcp, interval: §1ms}", "health.interval", "10ms to 1h"),
    ("health: {type: tcp, timeout: §0ms}", "health.timeout", "out of range"),
    ("health: {type: tcp, rise: §0}", "health.rise", "1 to 100"),
    ("health: {type: tcp, jitter: §0.1}", "health.jitter", "percentage"),
    ("health: {type: tcp, jitter: §101%}", "health.jitter", "percentage"),
    ("health: {type: tcp, port: §0}", "health.port", "1 to 65535"),
    ("health: {type: tcp, source: §eth0}", "health.source", "is not an IP address"),
    ("health: [tcp, {type: http, path: §x}]", "health[1].path", "begins with /"),
    ("health: [tcp, §nothing]", "health[1]", "is not one of"),
    ("passive: §on", "passive", "write `off`"),
    ("slow_start: §0", "slow_start", "units are"),
    ("quorum: §0", "quorum", "from 1"),
]


@pytest.mark.parametrize(("keys", "path", "said"), POOL_ROWS, ids=[row[0] for row in POOL_ROWS])
def test_a_pool(keys: str, path: str, said: str) -> None:
    assert_problem(f"pools:\n  p: {{servers: [192.0.2.1:80], {keys}}}{SERVICE}", f"pools.p.{path}", said)


DOCUMENT_ROWS = [
    ("§service: {}", "", "unknown key `service`; did you mean `services`?"),
    ("§frobnicate: {}", "", "allowed are: services, pools, vips"),
    ("proxy: {workers: §0}", "proxy.workers", "or `auto`"),
    ("proxy: {workers: §33}", "proxy.workers", "1 to 32"),
    ("proxy: §4", "proxy", "must be a mapping with keys of: `workers`"),
    ("api: {socket: §run/api.sock}", "api.socket", "absolute path"),
    (f"api: {{socket: §/{'x' * 100}}}", "api.socket", "at most 89"),
    ("hash_seed: §{}", "hash_seed", "a mapping is not allowed here"),
    ("vips: §[]", "vips", "write a mapping"),
]


@pytest.mark.parametrize(("text", "path", "said"), DOCUMENT_ROWS, ids=[row[0] for row in DOCUMENT_ROWS])
def test_other_keys(text: str, path: str, said: str) -> None:
    assert_problem(f"{text}{POOL}{SERVICE}", path, said)


NODE_ROWS = [
    ("vips:\n  §192.0.2.9: {interface: eth0, owner: static}", "vips", "no prefix length"),
    (
        "vips:\n  192.0.2.9/24: {interface: §this-is-too-long-a-name, owner: static}",
        'vips."192.0.2.9/24".interface',
        "15",
    ),
    ("vrrp:\n  a: {interface: eth0, vrid: §256}", "vrrp.a.vrid", "1 to 255"),
    ("vrrp:\n  a: {interface: eth0, vrid: 1, preempt: §yes}", "vrrp.a.preempt", "`true`, `false`, or a mapping"),
    ("vrrp:\n  a: {interface: eth0, vrid: 1, peers: [§x]}", "vrrp.a.peers[0]", "is not an IP address"),
    ("vrrp:\n  §A: {interface: eth0, vrid: 1}", "vrrp", "did you mean `a`?"),
    ("xdp: {mode: §fast}", "xdp.mode", "`auto`, `native`, `generic`"),
    ("xdp: {flow_table: §10}", "xdp.flow_table", "1024"),
    ("xdp: {tunnel_source: §automatic}", "xdp.tunnel_source", "or `auto`"),
    ("api: {listen: §127.0.0.1}", "api.listen", "has no port"),
]


@pytest.mark.parametrize(("text", "path", "said"), NODE_ROWS, ids=[row[0] for row in NODE_ROWS])
def test_what_cannot_be_done_yet_is_checked_all_the_same(text: str, path: str, said: str) -> None:
    clean = (text + POOL + SERVICE).replace("§", "")
    before = text[: text.index("§")]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    found = [p for p in problems(clean) if "not supported yet" not in p.message]
    assert [(p.line, p.column, p.path) for p in found] == [(line, column, path)], found
    assert said in found[0].message


def test_every_problem_is_reported_in_file_order() -> None:
    text, places = marked(
        "pools: {q: {servers: [§x]}}\nservices:\n  §Web: {listen: §y, pool: q, retries: §many}\n"
        "  api: {listen: 192.0.2.9:80, pool: §p}\n§bogus: 1\n"
    )
    assert [(p.line, p.column) for p in problems(text)] == places


def test_a_problem_reads_as_a_line_of_a_compiler() -> None:
    assert str(problems(f"services:\n  web: {{listen: x, pool: p}}{POOL}")[0]) == (
        "fairlead.yaml:2:17: services.web.listen: `x` is not an IP address (names are not resolved); "
        "write 192.0.2.10 or [2001:db8::10]"
    )


@pytest.mark.parametrize("text", ["10.0.0.1:80", "0.0.0.1:1", "223.255.255.255:65535", "240.0.0.1:8080"])
def test_a_plain_endpoint_is_what_is_read_and_written_otherwise(text: str) -> None:
    assert plain_endpoint(text) == parse_endpoint(text)
    assert str(plain_endpoint(text)) == text


@pytest.mark.parametrize("text", ["0.0.0.0:80", "224.0.0.1:80", "239.255.255.255:80", "10.0.0.1:65536", "10.0.0.1:080"])
def test_what_no_server_can_have_is_no_plain_endpoint(text: str) -> None:
    assert plain_endpoint(text) is None
    with pytest.raises(Refused):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["10.0.0.1", "[2001:db8::1]:80"])
def test_an_endpoint_that_is_written_otherwise_is_no_plain_one(text: str) -> None:
    assert plain_endpoint(text) is None
    assert parse_endpoint(text) is not None
