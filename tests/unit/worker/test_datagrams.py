# SPDX-License-Identifier: Apache-2.0
"""UDP: flows, answers, servers that refuse or go down, limits, the bounded table."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from fairlead.model.reasons import RejectReason
from support.peers import Datagrams, Server
from support.wait import until
from support.worker import Refused, Worker
from support.worker_abi import Kind, Mode, Scheduler, address

ROUND_ROBIN = Scheduler.RR


@pytest.fixture
def servers() -> Iterator[list[Datagrams]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Datagrams()) for _ in range(3)]


@pytest.fixture
def client() -> Iterator[Datagrams]:
    with Datagrams() as one:
        yield one


def chosen(servers: list[Datagrams]) -> Datagrams:
    """The server that something arrived at."""
    until(lambda: any(it.waiting() for it in servers), 5, "a datagram arrives")
    [one] = [it for it in servers if it.waiting()]
    return one


def gone(server: Datagrams) -> Datagrams:
    """Close it: its port refuses from now on."""
    server.close()
    return server


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_go_there_and_back(worker: Worker, host: str) -> None:
    with Datagrams(host) as server, Datagrams(host) as client:
        where = worker.simple([server], host=host)
        for size in (0, 1, 1400, 65000):
            client.send(b"q" * size, where)
            assert server.receive() == b"q" * size
            server.answer(b"a" * size)
            assert client.receive() == b"a" * size
            assert client.last == where
        [flow] = worker.flows()
        assert (flow.client, flow.vip, flow.server) == (client.where, where, 1)
        assert (flow.bytes_in, flow.bytes_out) == (66401, 66401)
        row = worker.memory.server(1, worker.slot)
        assert (row["connections"], row["active"], row["bytes_in"], row["bytes_out"]) == (1, 1, 66401, 66401)


def test_a_client_stays_with_its_server_and_each_port_is_a_flow(worker: Worker, servers: list[Datagrams]) -> None:
    where = worker.simple(servers, scheduler=ROUND_ROBIN)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Datagrams()) for _ in range(3)]
        homes = []
        for one in clients:
            one.send(b"first", where)
            homes.append(chosen(servers))
            homes[-1].receive()
        assert len({home.where for home in homes}) == 3
        for one, home in zip(clients, homes, strict=True):
            for word in (b"second", b"third"):
                one.send(word, where)
                assert home.receive() == word
                home.answer(word.upper())
                assert one.receive() == word.upper()
    assert len(worker.flows()) == 3


def test_many_answers_to_one_question_and_many_clients_at_once(worker: Worker, servers: list[Datagrams]) -> None:
    where = worker.simple(servers[:1])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Datagrams()) for _ in range(100)]
        for number, one in enumerate(clients):
            one.send(b"%d" % number, where)
        for _ in clients:
            question = servers[0].receive()
            for part in range(3):
                servers[0].answer(question + b".%d" % part)
        for number, one in enumerate(clients):
            assert sorted(one.receive() for _ in range(3)) == [b"%d.%d" % (number, part) for part in range(3)]


def test_answers_leave_from_the_address_that_was_asked_on_a_wildcard_listener(
    worker: Worker, servers: list[Datagrams]
) -> None:
    _, port = worker.simple(servers[:1], host="0.0.0.0")
    with Datagrams("127.0.0.1") as one:
        for host in ("127.0.0.7", "127.0.0.9"):
            one.send(b"q", (host, port))
            servers[0].receive()
            servers[0].answer(b"a")
            one.receive()
            assert one.last == (host, port)
    assert sorted(flow.vip for flow in worker.flows()) == [("127.0.0.7", port), ("127.0.0.9", port)]


def test_answers_leave_from_the_address_that_was_asked_with_ipv6(worker: Worker) -> None:
    with Datagrams("::1") as server, Datagrams("::1") as one:
        _, port = worker.simple([server], host="::")
        one.send(b"q", ("::1", port))
        server.receive()
        server.answer(b"a")
        one.receive()
        assert one.last == ("::1", port)


def test_a_refused_datagram_goes_to_another_server(worker: Worker, servers: list[Datagrams], client: Datagrams) -> None:
    where = worker.simple([gone(servers[0]), gone(servers[1]), servers[2]], scheduler=ROUND_ROBIN)
    for number in range(6):
        with Datagrams() as one:
            one.send(b"q%d" % number, where)
            assert servers[2].receive() == b"q%d" % number
            servers[2].answer(b"a")
            assert one.receive() == b"a"
    assert worker.memory.server(1, worker.slot)["connect_failures"] > 0
    assert worker.memory.server(1, worker.slot)["consecutive_failures"] > 0
    assert worker.memory.server(3, worker.slot)["consecutive_failures"] == 0
    assert worker.rejected(RejectReason.CONNECT_FAILED) == 0


def test_a_server_that_starts_to_refuse_loses_the_flow(
    worker: Worker, servers: list[Datagrams], client: Datagrams
) -> None:
    where = worker.simple(servers, scheduler=Scheduler.SH)
    client.send(b"one", where)
    home = chosen(servers)
    home.receive()
    home.answer(b"ok")
    client.receive()
    home.close()
    others = [it for it in servers if it is not home]

    def moved() -> bool:
        client.send(b"again", where)
        return any(it.waiting() for it in others)

    until(moved, 5, "the flow goes to another server")


def test_when_all_servers_refuse_the_flow_ends_counted(
    worker: Worker, servers: list[Datagrams], client: Datagrams
) -> None:
    where = worker.simple([gone(it) for it in servers], retries=10)
    client.send(b"q", where)
    until(lambda: worker.rejected(RejectReason.CONNECT_FAILED) == 1, 5, "it is counted")
    worker.settled()
    assert [worker.memory.server(number, worker.slot)["connect_failures"] for number in (1, 2, 3)] == [1, 1, 1]


def test_retries_bound_the_servers_that_are_tried(worker: Worker, servers: list[Datagrams], client: Datagrams) -> None:
    where = worker.simple([gone(it) for it in servers], retries=1)
    client.send(b"q", where)
    until(lambda: worker.rejected(RejectReason.CONNECT_FAILED) == 1, 5, "it is counted")
    assert sum(worker.memory.server(number, worker.slot)["connect_failures"] for number in (1, 2, 3)) == 2


def test_f27_a_flow_leaves_a_server_at_once_when_it_goes_down(
    worker: Worker, servers: list[Datagrams], client: Datagrams
) -> None:
    where = worker.simple(servers, scheduler=Scheduler.SH)
    client.send(b"one", where)
    home = chosen(servers)
    assert home.receive() == b"one"
    number = servers.index(home) + 1
    worker.table(2, [1, 2, 3], [index for index in range(3) if index != number - 1])
    worker.service(table=2, protocol=17, scheduler=Scheduler.SH)
    client.send(b"two", where)
    assert home.receive() == b"two"  # not yet told
    worker.server(number, home.where, unpin=True)
    assert worker.flows() == []
    client.send(b"three", where)
    assert chosen(servers) is not home


def test_f27_a_flow_that_came_back_meanwhile_leaves_with_its_next_datagram(
    worker: Worker, servers: list[Datagrams], client: Datagrams
) -> None:
    where = worker.simple(servers, scheduler=Scheduler.SH)
    client.send(b"one", where)
    home = chosen(servers)
    home.receive()
    number = servers.index(home) + 1
    worker.server(number, home.where, unpin=True)  # the table still has it: a service that fails open
    client.send(b"two", where)
    assert home.receive() == b"two"
    assert len(worker.flows()) == 1
    worker.table(2, [1, 2, 3], [index for index in range(3) if index != number - 1])
    worker.service(table=2, protocol=17, scheduler=Scheduler.SH)
    client.send(b"three", where)
    assert chosen(servers) is not home


def test_a_tcp_flow_stays_with_a_server_that_datagrams_leave(worker: Worker, server: Server) -> None:
    where = worker.simple([server])
    one, other = worker.pair(where, server)
    worker.server(1, server.where, unpin=True)
    one.sendall(b"still here")
    assert other.recv(100) == b"still here"


def test_a_reset_server_loses_its_flows(worker: Worker, servers: list[Datagrams], client: Datagrams) -> None:
    where = worker.simple(servers[:2], scheduler=ROUND_ROBIN)
    client.send(b"one", where)
    home = chosen(servers)
    home.receive()
    worker.server(servers.index(home) + 1, home.where, reset=True)
    client.send(b"two", where)
    assert chosen(servers) is not home
    assert worker.rejected(RejectReason.SERVER_RESET) == 1


def test_a_silent_flow_ends_after_its_timeout(worker: Worker, servers: list[Datagrams], client: Datagrams) -> None:
    where = worker.simple(servers, idle_ms=300)
    client.send(b"one", where)
    chosen(servers).receive()
    assert len(worker.flows()) == 1
    until(lambda: worker.flows() == [], 5, "the flow ends")
    worker.settled()
    assert sum(worker.memory.service(1, worker.slot)["rejected"]) == 0


def test_without_a_server_datagrams_are_dropped_and_counted(
    worker: Worker, servers: list[Datagrams], client: Datagrams
) -> None:
    where = worker.simple(servers)
    for mode in (Mode.REJECT, Mode.DROP):
        worker.service(table=0, mode=mode, protocol=17)
        client.send(b"q", where)
        until(lambda n=mode: worker.rejected(RejectReason.NO_SERVER) == n, 5, "it is counted")  # type: ignore[misc]
    worker.service(table=1, protocol=17)
    client.send(b"q", where)
    chosen(servers)


@pytest.mark.root
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_hears_that_nobody_is_there(worker: Worker, host: str) -> None:
    with Datagrams(host) as server:
        where = worker.simple([server], host=host)
    with Datagrams(host) as client:
        client.socket.connect(where)
        client.socket.send(b"refused by the server")
        with pytest.raises(ConnectionRefusedError):
            client.receive()
        worker.service(table=0, mode=Mode.REJECT, protocol=17)
        client.socket.send(b"refused by us")
        with pytest.raises(ConnectionRefusedError):
            client.receive()
        worker.service(table=0, mode=Mode.DROP, protocol=17)
        client.socket.send(b"not a word")
        until(lambda: worker.rejected(RejectReason.NO_SERVER) == 2, 5, "it is dropped")
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.receive()


@pytest.mark.root
def test_a_flood_is_not_answered_one_for_one(worker: Worker, servers: list[Datagrams], client: Datagrams) -> None:
    where = worker.simple(servers)
    worker.service(table=0, mode=Mode.REJECT, protocol=17)
    client.socket.connect(where)

    def is_refused() -> bool:
        try:
            client.socket.send(b"q")
        except ConnectionRefusedError:
            return True
        return False

    until(is_refused, 5, "questions are refused")  # on a busy machine the worker may run after thousands of them
    assert sum(is_refused() for _ in range(5000)) <= 3000


def test_limits_hold_for_flows(worker: Worker, servers: list[Datagrams]) -> None:
    where = worker.simple(servers, max_connections=5, connections_per_source=3)
    with contextlib.ExitStack() as stack:
        for host in ("127.0.0.2", "127.0.0.3"):
            for _ in range(4):
                stack.enter_context(Datagrams(host)).send(b"q", where)
        until(lambda: worker.rejected(RejectReason.SERVICE_FULL) == 2, 5, "the service is full")
    assert worker.rejected(RejectReason.SOURCE_CONNECTIONS) == 1
    assert worker.active() == 5


def test_only_listed_addresses_may_send(worker: Worker, servers: list[Datagrams]) -> None:
    where = worker.simple(servers, flags=1, ranges=[("127.0.0.5", "127.0.0.5")])
    with Datagrams("127.0.0.4") as denied, Datagrams("127.0.0.5") as allowed:
        denied.send(b"no", where)
        allowed.send(b"yes", where)
        assert chosen(servers).receive() == b"yes"
    assert worker.rejected(RejectReason.DENIED) == 1


def test_persistence_binds_all_ports_of_a_client(worker: Worker, servers: list[Datagrams]) -> None:
    where = worker.simple(servers, scheduler=ROUND_ROBIN, persist_ms=60_000)
    homes = set()
    for _ in range(5):
        with Datagrams() as one:
            one.send(b"q", where)
            home = chosen(servers)
            home.receive()
            homes.add(home.where)
    assert len(homes) == 1


def test_a_full_server_is_passed_over(worker: Worker, servers: list[Datagrams]) -> None:
    where = worker.simple(servers[:2], scheduler=Scheduler.LC)
    worker.server(1, servers[0].where, max_connections=1)
    worker.server(2, servers[1].where, max_connections=2)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Datagrams()).send(b"q", where)
        until(lambda: worker.rejected(RejectReason.SERVERS_FULL) == 1, 5, "both are full")
    assert [worker.memory.server(number, worker.slot)["active"] for number in (1, 2)] == [1, 2]


def test_the_oldest_flow_gives_way_and_conversations_last(start: Callable[..., Worker]) -> None:
    worker = start(descriptors=64)  # a reserve of 16, and half of the rest for datagrams: 24 flows
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Datagrams())
        where = worker.simple([server])
        talk = stack.enter_context(Datagrams())
        for _ in range(2):
            talk.send(b"q", where)
            server.receive()
            server.answer(b"a")
            talk.receive()
        before = server.last
        for _ in range(40):
            stack.enter_context(Datagrams()).send(b"q", where)
            server.receive()
        until(lambda: worker.rejected(RejectReason.FLOW_EVICTED) == 17, 5, "the table is full")
        assert len(worker.flows()) == 24
        talk.send(b"still", where)
        server.receive()
        assert server.last == before
        assert worker.rejected(RejectReason.FLOW_EVICTED) == 17


def test_closing_the_listener_ends_its_flows(worker: Worker, servers: list[Datagrams], client: Datagrams) -> None:
    where = worker.simple(servers)
    client.send(b"one", where)
    chosen(servers).receive()
    worker.listen_delete(1, where)
    assert worker.flows() == []
    worker.settled()


def test_a_draining_worker_still_passes_answers_on(worker: Worker, servers: list[Datagrams], client: Datagrams) -> None:
    where = worker.simple(servers)
    client.send(b"one", where)
    home = chosen(servers)
    home.receive()
    worker.control.ask(Kind.DRAIN, "drain", deadline_ms=5000)
    home.answer(b"late")
    assert client.receive() == b"late"
    worker.process.wait(10)
    assert worker.process.returncode == 0


def test_a_new_worker_takes_over_the_socket(
    start: Callable[..., Worker], servers: list[Datagrams], client: Datagrams
) -> None:
    first = start(slot=0)
    where = first.simple(servers)
    second = start(slot=1, memory=first.memory)
    second.simple(servers)
    [(record, [fd])] = [it for it in first.control.ask(Kind.HANDOVER) if it[0][0] == Kind.LISTEN_PUT]
    assert first.layouts.unpack("listen", record)["protocol"] == 17
    with socket.socket(fileno=fd) as passed:
        second.listen(at=passed)
    first.control.ask(Kind.DRAIN, "drain", deadline_ms=5000)
    for _ in range(20):
        client.send(b"one", where)
        home = chosen(servers)
        home.receive()
        home.answer(b"back")
        assert client.receive() == b"back"


def test_what_does_not_fit_together_is_refused(worker: Worker, servers: list[Datagrams], server: Server) -> None:
    worker.simple(servers)
    with pytest.raises(Refused, match="not a socket"):
        worker.control.ask(
            Kind.LISTEN_PUT, "listen", service=1, protocol=17, address=address(*server.where),
            descriptors=[server.socket.fileno()],
        )  # fmt: skip
    with pytest.raises(Refused, match="another protocol"):
        worker.listen(at=server.socket)
    with pytest.raises(Refused, match="listener of the other protocol"):
        worker.service(protocol=6)
