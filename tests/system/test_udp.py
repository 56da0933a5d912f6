# SPDX-License-Identifier: Apache-2.0
"""UDP with real name servers behind the VIP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.dns import Dnsmasq, Resolver
from support.processes import Daemon, free_port
from support.wait import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


class Site:
    """Two name servers and a load balancer in front of them."""

    def __init__(self, directory: Path, servers: list[Dnsmasq], *, scheduler: str = "rr") -> None:
        self.port = free_port()
        self.servers = {server.answer: server for server in servers}
        self.scheduler = scheduler
        self.daemon = Daemon(directory, self.configuration())

    def configuration(self, *, drained: str = "") -> str:
        lines = "\n".join(
            f"      - {{address: {it.address}, state: {'drain' if it.answer == drained else 'ready'}}}"
            for it in self.servers.values()
        )
        return f"""\
services:
  dns: {{listen: "127.0.0.1:{self.port}", protocol: udp, pool: dns, scheduler: {self.scheduler}}}
  dns-tcp: {{listen: "127.0.0.1:{self.port}", pool: dns, scheduler: {self.scheduler}}}
pools:
  dns:
    servers:
{lines}
    health: {{type: tcp, interval: 200ms, down_interval: 200ms, timeout: 200ms, rise: 1, fall: 2}}
    drain_timeout: 1s
"""

    def health(self, answer: str) -> object:
        address = self.servers[answer].address
        return next(view["health"] for view in self.daemon.show("servers") if view["address"] == address)


@pytest.fixture
def site(runtime: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        servers = [stack.enter_context(Dnsmasq(runtime, f"192.0.2.{n}")) for n in (1, 2)]
        site = Site(runtime, servers)
        stack.enter_context(site.daemon)
        until(lambda: all(site.health(it) == "up" for it in site.servers), 10, "all servers are up")
        yield site


def test_questions_reach_every_server_and_a_port_stays_with_its_own(site: Site) -> None:
    seen = set()
    for _ in range(8):
        with Resolver(site.port) as resolver:
            first = resolver.ask()
            assert [resolver.ask() for _ in range(5)] == [first] * 5
            seen.add(first)
    assert seen == site.servers.keys()
    views = {view["name"]: view for view in site.daemon.show("services")}
    assert views["dns"]["connections_total"] == 8
    assert views["dns"]["active"] == 8


def test_f27_a_long_lived_client_leaves_a_dead_server_with_its_verdict(site: Site) -> None:
    with Resolver(site.port) as resolver:
        first = resolver.ask()
        other = next(it for it in site.servers if it != first)
        site.servers[first].kill()
        until(lambda: site.health(first) == "down", 10, "the server is down")
        until(lambda: resolver.ask() == other, 2, "the next question is answered by the other server")
        assert [resolver.ask() for _ in range(10)] == [other] * 10
        site.servers[first].start()
        until(lambda: site.health(first) == "up", 10, "the server is up")
        assert resolver.ask() == other


def test_a_refused_question_is_answered_before_any_verdict(site: Site) -> None:
    dead, alive = site.servers
    site.servers[dead].kill()
    answers = []
    for _ in range(4):
        with Resolver(site.port) as resolver:
            answers.append(resolver.ask())
    assert answers == [alive] * 4


def test_a_flow_stays_with_a_draining_server_until_the_deadline(site: Site) -> None:
    with Resolver(site.port) as resolver:
        first = resolver.ask()
        other = next(it for it in site.servers if it != first)
        site.daemon.file.write_text(site.configuration(drained=first))
        site.daemon.reload()
        assert resolver.ask() == first
        until(lambda: resolver.ask() == other, 10, "the flow leaves at the deadline")


def test_flows_go_on_through_a_change_of_agents_and_a_reload(site: Site) -> None:
    with Resolver(site.port) as resolver:
        first = resolver.ask()
        site.daemon.reload()
        assert resolver.ask() == first
        site.daemon.kill()
        assert resolver.ask() == first
        site.daemon.start()
        assert resolver.ask() == first


def test_fewer_workers_leave_no_socket_that_nobody_reads(site: Site) -> None:
    site.daemon.file.write_text(site.configuration() + "proxy: {workers: 3}\n")
    site.daemon.kill()
    site.daemon.start()
    assert len(site.daemon.worker_pids()) == 3
    site.daemon.file.write_text(site.configuration() + "proxy: {workers: 1}\n")
    with ExitStack() as stack:
        for _ in range(20):  # flows in all workers
            assert stack.enter_context(Resolver(site.port)).ask()
        site.daemon.kill()
        site.daemon.start()
        # Of three sockets one alone is left: no question may go to another.
        assert all(stack.enter_context(Resolver(site.port)).ask() for _ in range(40))


def test_an_upgrade_of_the_agent_under_load_loses_no_answer(site: Site) -> None:
    with ExitStack() as stack:
        resolvers = [stack.enter_context(Resolver(site.port)) for _ in range(20)]
        first = [resolver.ask() for resolver in resolvers]
        for _ in range(3):
            site.daemon.kill()
            assert [resolver.ask() for resolver in resolvers] == first
            site.daemon.start()
            assert [resolver.ask() for resolver in resolvers] == first
