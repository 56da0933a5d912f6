# SPDX-License-Identifier: Apache-2.0
"""Health with the whole daemon: real traffic that fails, servers that come up slowly, probes with a PROXY header."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.processes import Daemon, Nginx, free_port
from support.traffic import Traffic, ask
from support.wait import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def configuration(port: int, pool: str, *servers: str, scheduler: str = "rr") -> str:
    return (
        f"services:\n  web: {{listen: '127.0.0.1:{port}', pool: web, scheduler: {scheduler}}}\n"
        f"pools:\n  web:\n    servers: [{', '.join(servers)}]\n{pool}"
    )


def server(daemon: Daemon, address: str) -> dict[str, Any]:
    """What the daemon says about the server at ``address``."""
    (view,) = [view for view in daemon.show("servers") if view["address"] == address]
    return dict(view)


@contextlib.contextmanager
def agent(words: list[str]) -> Iterator[int]:
    """A program that answers every connection with the last of ``words``; its port."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(words[-1].encode() + b"\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Answer) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()
            thread.join()


def test_an_agent_says_how_much_its_server_wants(runtime: Path) -> None:
    port, words = free_port(), ["up 50% maxconn:7"]
    with agent(words) as asked, Nginx(runtime, "a") as a:
        pool = f"    agent: {{port: {asked}, interval: 100ms}}\n    health: {{type: tcp, interval: 100ms}}\n"
        heavy = f"{{address: '{a.address}', weight: 10}}"
        with Daemon(runtime, configuration(port, pool, heavy, scheduler="wrr")) as daemon:

            def seen() -> tuple[object, ...]:
                view = server(daemon, a.address)
                return view["effective_weight"], view["max_connections"], view["idle_reason"], view["agent"]

            assert seen() == (5, 7, None, "50%, maxconn 7")
            words.append("drain #backup runs")
            until(lambda: seen() == (0, 7, "agent", "50%, maxconn 7, drain"), 10, "drain")
            daemon.cli("maint", f"web/{a.address}")
            words.append("up ready 100% maxconn:0")
            assert server(daemon, a.address)["idle_reason"] == "maint"
            daemon.cli("ready", f"web/{a.address}")
            until(lambda: seen() == (10, 0, None, "ready"), 10, "all of it")
            words.append("down #disk full")
            until(lambda: seen() == (0, 0, "agent", "down (disk full)"), 10, "down")
            assert "agent (down (disk full))" in daemon.cli("show", "servers").stdout


def test_a_server_that_refuses_connections_is_ejected_without_a_probe_and_without_harm(runtime: Path) -> None:
    port, dead = free_port(), f"127.0.0.1:{free_port()}"
    pool = "    health: none\n    passive: {failures: 3, eject: 2s}\n"
    with Nginx(runtime, "a") as nginx, Daemon(runtime, configuration(port, pool, nginx.address, dead)) as daemon:
        with Traffic("127.0.0.1", port) as traffic:
            until(lambda: server(daemon, dead)["idle_reason"] == "ejected", 10, "the ejection")
            until(lambda: server(daemon, dead)["ejections_total"] == 2, 20, "another one after its return")
        assert traffic.failures() == []
        assert server(daemon, dead)["health"] == "none"
        kinds = [event["kind"] for event in daemon.show("events")]
        assert kinds.count("server_ejected") == 2
        assert kinds.count("server_returned") == 1
        metrics = daemon.ask("GET", "/metrics")[1].decode()
        assert f'fairlead_server_ejections_total{{pool="web",server="{dead}"}} 2.0' in metrics


def test_a_server_that_returns_gets_its_connections_gradually(runtime: Path) -> None:
    port = free_port()
    pool = (
        "    health: {type: http, interval: 100ms, timeout: 100ms, rise: 1, fall: 1, jitter: 0%}\n    slow_start: 5s\n"
    )
    with (
        Nginx(runtime, "a") as a,
        Nginx(runtime, "b") as b,
        Daemon(runtime, configuration(port, pool, a.address, b.address, scheduler="wrr")) as daemon,
    ):
        b.kill()
        until(lambda: server(daemon, b.address)["health"] == "down", 10, "the death")
        b.start()
        until(lambda: server(daemon, b.address)["share_reason"] == "slow_start", 10, "the return")
        with Traffic("127.0.0.1", port) as traffic:
            until(lambda: server(daemon, b.address)["share"] >= 30, 10, "the third step")
            early = Counter(answer.server for answer in traffic.answers)
            until(lambda: server(daemon, b.address)["share"] == 100, 10, "the end of it")
            begun = len(traffic.answers)
            until(lambda: len(traffic.answers) > begun + 100, 20, "traffic flows on")
            late = Counter(answer.server for answer in traffic.answers[begun:])
        assert traffic.failures() == []
        assert 0 < early["b"] < early["a"] / 2
        assert late["b"] > late["a"] * 0.8


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_takes_the_proxy_header_of_a_probe(runtime: Path, version: str) -> None:
    port, proxied = free_port(), free_port()
    extra = f"listen 127.0.0.1:{proxied} proxy_protocol;"
    with Nginx(runtime, "a", extra=extra) as nginx:
        probes = f"{{type: http, interval: 100ms, send_proxy: {version}, port: {proxied}}}"
        with Daemon(runtime, configuration(port, f"    health: {probes}\n", nginx.address)) as daemon:
            assert server(daemon, nginx.address)["health"] == "up"
        bare = f"    health: {{type: http, interval: 100ms, port: {proxied}}}\n"
        with Daemon(runtime, configuration(port, bare, nginx.address)) as daemon:
            assert server(daemon, nginx.address)["health"] == "down"


def test_dns_and_exec_probes_of_a_running_daemon(runtime: Path) -> None:
    port = free_port()
    with Nginx(runtime, "a") as nginx, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        program = runtime / "alive"
        program.write_text('#!/bin/sh\necho "seen $FAIRLEAD_ADDRESS:$FAIRLEAD_PORT"; test -e "$1"\n')
        program.chmod(0o700)
        flag = runtime / "flag"
        health = f"    health: {{type: exec, command: [{program}, {flag}], interval: 100ms, rise: 1, fall: 1}}\n"
        text = configuration(port, health, nginx.address) + "health: {allow_exec: true}\n"
        with Daemon(runtime, text) as daemon:
            view = server(daemon, nginx.address)
            assert (view["health"], view["down_reason"]) == ("down", "bad_status")
            assert f"seen {nginx.address}" in view["detail"]
            flag.touch()
            until(lambda: server(daemon, nginx.address)["health"] == "up", 10, "the program is content")
            question = f"{{type: dns, query: example.org, port: {silent.getsockname()[1]}, timeout: 100ms}}"
            daemon.file.write_text(configuration(port, f"    health: {question}\n", nginx.address))
            assert daemon.cli("reload").returncode == 0
            until(lambda: server(daemon, nginx.address)["down_reason"] == "timeout", 10, "nobody answers")


def flag_health(runtime: Path, *flags: Path, interval: str = "100ms") -> str:
    """Probes that pass while the flag of the server's port exists, whatever the server itself does."""
    program = runtime / "flagged"
    program.write_text(f'#!/bin/sh\ntest -e "{runtime}/$FAIRLEAD_PORT"\n')
    program.chmod(0o700)
    for flag in flags:
        flag.touch()
    return f"    health: {{type: exec, command: [{program}], interval: {interval}, rise: 2, fall: 2}}\n"


def test_f40_what_all_servers_down_means_is_each_services_own_choice(runtime: Path) -> None:
    closed, opened = free_port(), free_port()
    with Nginx(runtime, "a") as nginx:
        flag = runtime / str(nginx.port)
        text = (
            f"services:\n  closed: {{listen: '127.0.0.1:{closed}', pool: web}}\n"
            f"  open: {{listen: '127.0.0.1:{opened}', pool: web, when_all_down: use_all}}\n"
            f"pools:\n  web:\n    servers: [{nginx.address}]\n{flag_health(runtime, flag)}"
            "health: {allow_exec: true}\n"
        )

        def states() -> set[tuple[object, object]]:
            return {(view["name"], view["state"]) for view in daemon.show("services")}

        with Daemon(runtime, text) as daemon, Traffic("127.0.0.1", opened) as traffic:
            with socket.create_connection(("127.0.0.1", closed), timeout=5) as client:
                assert ask(client, "test", close=True) == "a"
            flag.unlink()  # the application goes on, only its health endpoint fails
            until(lambda: states() == {("closed", "down"), ("open", "degraded")}, 10, "all are down")
            with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", closed), timeout=5) as client:
                ask(client, "test", close=True)
            begun = len(traffic.answers)
            until(lambda: len(traffic.answers) > begun + 50, 10, "the open one serves on")
            metrics = daemon.ask("GET", "/metrics")[1].decode()
            assert 'fairlead_service_state{service="closed",state="down"} 1.0' in metrics
            assert 'fairlead_service_state{service="open",state="degraded"} 1.0' in metrics
            flag.touch()
            until(lambda: states() == {("closed", "up"), ("open", "up")}, 10, "all are up again")
            kinds = [(event["subject"], event["kind"]) for event in daemon.show("events")]
        assert traffic.failures() == []
        assert ("closed", "service_down") in kinds
        assert ("open", "service_degraded") in kinds


def test_f41_reloads_neither_send_traffic_to_a_dead_server_nor_keep_it_from_returning(runtime: Path) -> None:
    port = free_port()
    with Nginx(runtime, "a") as a, Nginx(runtime, "b") as b:
        health = flag_health(runtime, runtime / str(a.port), interval="200ms")
        text = configuration(port, health, a.address, b.address) + "health: {allow_exec: true}\n"
        with Daemon(runtime, text) as daemon, Traffic("127.0.0.1", port) as traffic:
            for round_ in range(20):
                # The name of another service changes, so that a reload is one.
                daemon.file.write_text(
                    text.replace("pools:", f"  s{round_}: {{listen: '[::1]:{port}', pool: web}}\npools:")
                )
                daemon.reload()
                assert server(daemon, b.address)["health"] == "down"
            assert b.requests() == 0
            (runtime / str(b.port)).touch()
            began = time.monotonic()
            while server(daemon, b.address)["health"] == "down":
                daemon.file.write_text(text)
                daemon.reload()
                assert time.monotonic() - began < 5, "reloads kept it from returning"
            until(lambda: b.requests() > 10, 10, "it serves")
        assert traffic.failures() == []
