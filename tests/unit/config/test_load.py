# SPDX-License-Identifier: Apache-2.0
"""What a file means: defaults, every key, shorthands, several files, the digest."""

from __future__ import annotations

import hashlib
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from fairlead.config import Source, load
from fairlead.config.forms import parse_listen
from fairlead.errors import ConfigError
from fairlead.model.net import Endpoint, Listen, Protocol
from fairlead.model.pool import (
    AdminState,
    HealthMonitor,
    HttpExpectation,
    MonitorType,
    RealServer,
    TlsSettings,
)
from fairlead.model.service import (
    Engine,
    Forwarding,
    Limits,
    Persistence,
    ProxyHeader,
    Scheduler,
    VirtualService,
    WhenAllDown,
)
from support.configs import POOL, SERVICE, configuration, loaded
from support.yardstick import slowness

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def example(name: str) -> bytes:
    return (EXAMPLES / name).read_bytes()


def test_defaults_are_those_of_the_contract() -> None:
    read = configuration(
        "services: {web: {listen: 192.0.2.10:443, pool: web}}\npools: {web: {servers: [10.0.1.10:8443]}}"
    )
    assert read.services["web"] == VirtualService(
        name="web",
        listen=(Listen(IPv4Address("192.0.2.10"), 443, 443),),
        pool="web",
        forwarding=Forwarding.PROXY,
        engine=Engine.AUTO,
        scheduler=Scheduler.MAGLEV,
        persistence=None,
        idle_timeout_s=350.0,
        connect_timeout_s=5.0,
        retries=3,
        half_close_timeout_s=30.0,
        limits=Limits(0, 0, 0),
        when_all_down=WhenAllDown.REJECT,
    )
    pool = read.pools["web"]
    assert pool.servers == (RealServer("10.0.1.10:8443", Endpoint(IPv4Address("10.0.1.10"), 8443)),)
    assert pool.monitors == (HealthMonitor(MonitorType.TCP, 2.0, 2.0, 1.0, 2, 3, 0.1),)
    assert (pool.slow_start_s, pool.drain_timeout_s, pool.quorum) == (0.0, 300.0, 1)
    assert (read.workers, read.hash_seed, read.api.socket) == (0, None, None)


def test_quickstart_loads_as_its_comment_says() -> None:
    read = configuration(example("quickstart.yaml").decode())
    assert [str(server.endpoint) for server in read.pools["web"].servers] == [f"127.0.0.1:900{n}" for n in (1, 2, 3)]
    assert read.pools["web"].monitors == (
        HealthMonitor(MonitorType.HTTP, 0.5, 0.5, 0.3, 2, 2, 0.1, http=HttpExpectation()),
    )


def test_proxy_full_loads_without_a_warning() -> None:
    read = configuration(example("proxy-full.yaml").decode())
    assert read.services["web"].send_proxy is ProxyHeader.V2
    assert read.services["dns"].protocol is Protocol.UDP


@pytest.mark.parametrize("name", ["pair.yaml", "gateway-nat.yaml", "dsr-tunnel.yaml"])
def test_other_examples_load_without_a_warning(name: str) -> None:
    configuration(example(name).decode())


def test_dsr_tunnel_probes_as_its_comment_says() -> None:
    pools = configuration(example("dsr-tunnel.yaml").decode()).pools
    assert [(name, str(it.through.vip) if it.through else None) for name in pools for it in pools[name].monitors] == [
        ("near", None),
        ("far", "198.51.100.21:443"),
        ("far6", "[2001:db8:20::21]:443"),
    ]


def test_every_key_of_a_service_arrives() -> None:
    read = loaded(
        """
services:
  web:
    listen: ["192.0.2.10:8000-8099", "[2001:db8::10]:443"]
    pool: p
    engine: userspace
    scheduler: wlc
    persistence: {timeout: 5m, prefix_v4: 24, prefix_v6: 64}
    idle_timeout: 1h
    connect_timeout: 250ms
    retries: 0
    half_close_timeout: 2s
    allow: [192.0.2.0/24, 198.51.100.1]
    deny: ["2001:db8::/32"]
    limits:
      {connections: 1, connections_per_source: 2, new_per_source: 3, prefix_v4: 24, prefix_v6: 56, queue: 4,
       queue_timeout: 5s}
    when_all_down: use_all
"""
        + POOL
    ).configuration.services["web"]
    assert read.listen == (Listen(IPv4Address("192.0.2.10"), 8000, 8099), Listen(IPv6Address("2001:db8::10"), 443, 443))
    assert read.persistence == Persistence(300.0, 24, 64)
    assert (read.idle_timeout_s, read.connect_timeout_s, read.retries, read.half_close_timeout_s) == (
        3600.0,
        0.25,
        0,
        2.0,
    )
    assert read.allow == (IPv4Network("192.0.2.0/24"), IPv4Network("198.51.100.1/32"))
    assert [str(n) for n in read.deny] == ["2001:db8::/32"]
    assert read.limits == Limits(1, 2, 3, 24, 56, 4, 5.0)
    assert (read.engine, read.scheduler, read.when_all_down) == (Engine.USERSPACE, Scheduler.WLC, WhenAllDown.USE_ALL)


def test_persistence_and_idle_timeout_in_their_short_forms() -> None:
    text = "services: {{s: {{listen: 192.0.2.9:80, pool: p, persistence: {}, idle_timeout: {}}}}}" + POOL.replace(
        "{", "{{"
    ).replace("}", "}}")
    service = configuration(text.format("5m", "off")).services["s"]
    assert (service.persistence, service.idle_timeout_s) == (Persistence(300.0), 0.0)
    assert configuration(text.format("off", "1s")).services["s"].persistence is None


def test_every_key_of_servers_and_pools_arrives() -> None:
    pool = configuration(
        """
pools:
  p:
    servers:
      - 10.0.1.10:8443
      - {address: "[2001:db8::11]:8443", name: web-2, weight: 2}
      - {address: 10.0.1.12:8443, max_connections: 1000, state: drain}
      - {address: 10.0.1.99, backup: true, state: maint}
    health: none
    drain_timeout: 0s
    quorum: 3
    passive: off
    agent: off
"""
        + SERVICE
    ).pools["p"]
    assert pool.servers == (
        RealServer("10.0.1.10:8443", Endpoint(IPv4Address("10.0.1.10"), 8443)),
        RealServer("web-2", Endpoint(IPv6Address("2001:db8::11"), 8443), weight=2),
        RealServer("10.0.1.12:8443", Endpoint(IPv4Address("10.0.1.12"), 8443), 1, 1000, AdminState.DRAIN),
        RealServer("10.0.1.99", Endpoint(IPv4Address("10.0.1.99"), 0), state=AdminState.MAINT, backup=True),
    )
    assert (pool.monitors, pool.drain_timeout_s, pool.quorum) == ((), 0.0, 3)


def test_monitors_of_all_types_of_this_version() -> None:
    monitors = (
        configuration(
            """
pools:
  p:
    servers: [10.0.1.10:8443]
    health:
      - tcp
      - {type: tls, port: 8444, source: 10.0.1.1, tls: {verify: true, ca_file: /etc/ca.pem, server_name: a.example}}
      - {type: http, method: HEAD, path: "/x?y", host: "a.example:80", headers: {X-A: b c},
         expect: [200, 300-399], body: ok}
      - {type: https, host: "a.example:443", address: 10.0.9.9, interval: 4s, down_interval: 500ms, jitter: 50%}
      - {type: https, host: "10.0.1.10"}
"""
            + SERVICE
        )
        .pools["p"]
        .monitors
    )
    assert monitors[0] == HealthMonitor(MonitorType.TCP)
    assert (monitors[1].port, monitors[1].source) == (8444, IPv4Address("10.0.1.1"))
    assert monitors[1].tls == TlsSettings(verify=True, ca_file="/etc/ca.pem", server_name="a.example")
    assert monitors[2].http == HttpExpectation(
        "HEAD", "/x?y", "a.example:80", (("X-A", "b c"),), ((200, 200), (300, 399)), "ok"
    )
    assert (monitors[3].interval_s, monitors[3].down_interval_s, monitors[3].jitter) == (4.0, 0.5, 0.5)
    assert monitors[3].address == IPv4Address("10.0.9.9")
    assert monitors[3].tls == TlsSettings(server_name="a.example")
    assert monitors[4].tls == TlsSettings(server_name=None), "SNI carries names, not addresses"


def test_down_interval_follows_interval() -> None:
    pools = configuration("pools: {p: {servers: [192.0.2.1:80], health: {type: tcp, interval: 5s}}}" + SERVICE).pools
    assert pools["p"].monitors[0].down_interval_s == 5.0


def test_settings_of_the_node() -> None:
    read = configuration(
        "proxy: {workers: 3}\napi: {socket: /run/x/api.sock, listen: null}\nhash_seed: change-me\n"
        "bgp: {}\nxdp:\nvips: {}\n" + POOL + SERVICE
    )
    assert (read.workers, read.api.socket) == (3, "/run/x/api.sock")
    assert read.hash_seed == hashlib.blake2b(b"change-me", digest_size=16).digest()


def test_words_that_yaml_would_turn_into_something_else_stay_words() -> None:
    read = configuration(
        "services:\n  no: {listen: 192.0.2.9:80, pool: 0777, persistence: off}\n"
        "pools:\n  0777: {servers: [{address: 192.0.2.1:80, name: on}], health: none}\n"
    )
    assert list(read.services) == ["no"]
    assert read.services["no"].pool == "0777"
    assert read.pools["0777"].servers[0].name == "on"


def test_only_a_bare_null_is_nothing() -> None:
    read = configuration(
        'services: {s: {listen: 192.0.2.9:80, pool: "null"}}\npools: {null: {servers: [192.0.2.1:80]}}'
    )
    assert read.services["s"].pool == "null"


def test_every_port() -> None:
    assert parse_listen("192.0.2.9:*") == Listen(IPv4Address("192.0.2.9"), 1, 65535)


def test_files_merge_by_name() -> None:
    main = Source("fairlead.yaml", b"services: {a: {listen: 192.0.2.9:80, pool: p}}\nhash_seed: x")
    more = Source("conf.d/b.yaml", b"services: {b: {listen: 192.0.2.9:81, pool: p}}\n" + POOL.encode())
    empty = Source("conf.d/c.yaml", b"# nothing yet\n")
    result = load([main, more, empty], {})
    assert (list(result.configuration.services), result.warnings) == (["a", "b"], ())


def test_a_name_defined_in_two_files_names_both_places() -> None:
    main = Source("fairlead.yaml", POOL.encode() + b"services:\n  a: {listen: 192.0.2.9:80, pool: p}\nhash_seed: x\n")
    more = Source("conf.d/b.yaml", b"hash_seed: y\nservices:\n\n  a: {listen: 192.0.2.9:81, pool: p}\n")
    with pytest.raises(ConfigError) as caught:
        load([main, more], {})
    assert [str(p) for p in caught.value.problems] == [
        "conf.d/b.yaml:1:1: hash_seed: is defined twice; first at fairlead.yaml:5:1",
        "conf.d/b.yaml:4:3: services.a: `a` is defined twice; first at fairlead.yaml:4:3",
    ]


def test_problems_of_several_files_come_in_the_order_of_the_files() -> None:
    bad = b"pools: {%b: {servers: [x]}}"
    with pytest.raises(ConfigError) as caught:
        load([Source("z", bad % b"a"), Source("a", b"services: ["), Source("m", bad % b"b")], {})
    assert [p.file for p in caught.value.problems] == ["z", "a", "m"]


def test_names_are_not_looked_up_while_a_file_cannot_be_read() -> None:
    with pytest.raises(ConfigError) as caught:
        load([Source("fairlead.yaml", SERVICE.encode()), Source("conf.d/pools.yaml", b"pools: {p: [")], {})
    assert [p.file for p in caught.value.problems] == ["conf.d/pools.yaml"]


@pytest.mark.serial
def test_a_thousand_services_of_ten_servers_load_in_a_second() -> None:
    lines = ["services:"]
    lines += [f"  s{n}: {{listen: 10.0.{n >> 8}.{n & 255}:80, pool: p{n}}}" for n in range(1000)]
    lines += ["pools:"]
    for n in range(1000):
        servers = ", ".join(f"{{address: 10.{s + 1}.{n >> 8}.{n & 255}:80, weight: {s}}}" for s in range(10))
        lines += [f"  p{n}:", f"    servers: [{servers}]", "    health: {type: http, path: /healthz, interval: 1s}"]
    slow, started = slowness(), time.process_time()
    read = configuration("\n".join(lines))
    took_s, slow = time.process_time() - started, max(slow, slowness())
    assert took_s < slow, f"{took_s:.2f} s of CPU, on a machine {slow:.1f} x as slow"
    assert len(read.services) == len(read.pools) == 1000


def test_the_digest_is_what_sha256sum_prints() -> None:
    text = (POOL + SERVICE).encode()
    assert loaded(text).configuration.digest == hashlib.sha256(text).hexdigest()
    other = b"# more\n"
    lines = f"{hashlib.sha256(text).hexdigest()}  a\n{hashlib.sha256(other).hexdigest()}  b\n"
    both = load([Source("a", text), Source("b", other)], {})
    assert both.configuration.digest == hashlib.sha256(lines.encode()).hexdigest()
