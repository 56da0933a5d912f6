# SPDX-License-Identifier: Apache-2.0
"""Where the proxy data plane listens, what it says when it cannot, and what moves without losing a client."""

from __future__ import annotations

import os
import signal
import socket
import struct
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fairlead.dataplane.proxy import listeners
from fairlead.dataplane.proxy.driver import ProxyDataPlane
from fairlead.dataplane.proxy.listeners import Port, Sockets
from fairlead.errors import DataPlaneError
from fairlead.model.net import Endpoint, Listen, Protocol
from fairlead.model.state import CloseListener, ForwardingState, Listener, OpenListener, Plan, PutService, ServiceMode
from fairlead.policy.plan import plan
from support.models import endpoint, listener, service_spec
from support.processes import free_port
from support.proxy import Lab, bring, lab, one_service, pids
from support.servers import descriptors


def inode(plane: ProxyDataPlane, at: str) -> int:
    """Which socket listens there for the first worker."""
    return os.fstat(plane._sockets.fileno(Port(Protocol.TCP, endpoint(at)), 0)).st_ino


async def refusal(made: Lab, wanted: Listener) -> str:
    """What opening says."""
    plane = await made.plane(2)
    await plane.apply(Plan((PutService(service_spec("web")),)))
    before = descriptors()
    with pytest.raises(DataPlaneError) as raised:
        await plane.apply(Plan((OpenListener(wanted),)))
    assert raised.value.op == OpenListener(wanted)
    assert descriptors() == before
    assert not (await plane.observe()).listeners
    return str(raised.value)


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)])
async def test_an_address_that_another_program_holds_is_named(
    runtime: Path, program: Path, options: tuple[int, ...]
) -> None:
    async with lab(runtime, program) as made:
        with socket.socket() as holder:
            for option in options:
                holder.setsockopt(socket.SOL_SOCKET, option, 1)
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            message = await refusal(made, listener("web", f"127.0.0.1:{port}"))
    assert f"127.0.0.1:{port}: another program holds the address" in message
    assert f"ss -ltnp 'sport = :{port}'" in message


async def test_a_range_with_one_port_taken_opens_none(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        port = free_port()
        with socket.create_server(("127.0.0.5", port)):
            message = await refusal(made, listener("web", f"127.0.0.5:{port - 3}-{port}"))
    assert f"127.0.0.5:{port}: another program" in message


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("192.0.2.77:80", ("192.0.2.77 is not an address of this host", "vips:")),
        ("127.0.0.1:1-65535", ("65535 ports", "1024")),
    ],
)
async def test_what_this_host_or_version_cannot_do_is_said(
    runtime: Path, program: Path, at: str, words: tuple[str, ...]
) -> None:
    async with lab(runtime, program) as made:
        message = await refusal(made, listener("web", at))
    for word in words:
        assert word in message


def test_a_low_port_needs_a_capability_and_the_message_names_it() -> None:
    error = PermissionError(13, "Permission denied")
    message = listeners._explain(Port(Protocol.TCP, Endpoint(ip_address("127.0.0.1"), 80)), error)
    assert "CAP_NET_BIND_SERVICE" in message


async def test_connections_that_linger_from_an_earlier_listener_are_no_holder(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(1)
        state, at = one_service(server)
        await bring(plane, state)
        client = await made.client(at)
        assert await client.say() == server
        await bring(plane, replace(state, listeners=frozenset()))
        await bring(plane, state)  # `client` is established at the port still
        assert await client.say() == server
        assert await made.ask(at) == server


async def test_a_wildcard_replaces_its_own_single_address(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, at = one_service(server)
        port = int(at.rpartition(":")[2])
        wide = replace(state, listeners=frozenset({listener("web", f"0.0.0.0:{port}")}))
        both = replace(state, listeners=state.listeners | wide.listeners)
        await bring(plane, state)
        for step in (both, wide, both, state):
            await bring(plane, step)
            assert await made.ask(at) == server


async def test_a_listener_of_both_families_at_one_port(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, at = one_service(server)
        port = int(at.rpartition(":")[2])
        any4, any6 = listener("web", f"0.0.0.0:{port}"), listener("web", f"[::]:{port}")
        await bring(plane, replace(state, listeners=frozenset({any4, any6})))
        assert await made.ask(f"127.0.0.1:{port}") == server
        assert await made.ask(f"::1:{port}") == server
        await bring(plane, replace(state, listeners=frozenset({any6})))
        with pytest.raises(ConnectionRefusedError):
            await made.ask(at)
        assert await made.ask(f"::1:{port}") == server


async def test_a_port_that_changes_its_service_keeps_its_queue(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        first, second = await made.server(), await made.server()
        plane = await made.plane(1)
        state, at = one_service(first)
        heir, _ = one_service(second, at=at)
        [spec] = heir.services.values()
        moved = ForwardingState(
            servers={**state.servers, **heir.servers},  # a server that went would take its connections along
            tables=heir.tables,
            services={"heir": replace(spec, name="heir")},
            listeners=frozenset({listener("heir", at)}),
        )
        await bring(plane, state)
        assert await made.ask(at) == first
        assert any(isinstance(op, CloseListener) for op in plan(moved, await plane.observe()).ops)
        [pid] = await pids(plane)
        os.kill(pid, signal.SIGSTOP)
        waiting = [await made.client(at) for _ in range(5)]
        os.kill(pid, signal.SIGCONT)
        sock = inode(plane, at)
        await bring(plane, moved)
        assert inode(plane, at) == sock
        assert {await client.say() for client in waiting} <= {first, second}
        assert await made.ask(at) == second


async def test_a_longer_range_keeps_the_ports_in_common(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(1)
        first = free_port()
        state, _ = one_service(server, at=f"127.0.0.9:{first}-{first + 2}")
        longer, _ = one_service(server, at=f"127.0.0.9:{first + 1}-{first + 4}")
        await bring(plane, state)
        [pid] = await pids(plane)
        os.kill(pid, signal.SIGSTOP)
        waiting = await made.client(f"127.0.0.9:{first + 2}")
        os.kill(pid, signal.SIGCONT)
        sock = inode(plane, f"127.0.0.9:{first + 2}")
        await bring(plane, longer)
        assert inode(plane, f"127.0.0.9:{first + 2}") == sock
        assert await waiting.say() == server
        for port in range(first + 1, first + 5):
            assert await made.ask(f"127.0.0.9:{port}") == server
        with pytest.raises(ConnectionRefusedError):
            await made.ask(f"127.0.0.9:{first}")


async def test_a_service_in_mode_drop_lets_clients_wait_and_takes_them_when_it_forwards_again(
    runtime: Path, program: Path
) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(1)
        state, at = one_service(server)
        dropping = replace(
            state,
            tables={},
            services={"web": replace(state.services["web"], mode=ServiceMode.DROP, table=None)},
        )
        await bring(plane, dropping)
        host, _, port = at.rpartition(":")
        with socket.socket() as client:
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.connect((host, int(port)))
        await bring(plane, state)
        assert await made.ask(at) == server


def test_what_clients_get_inherits_nodelay_and_keepalive() -> None:
    sockets = Sockets()
    at = Endpoint(ip_address("127.0.0.1"), free_port())
    port = Port(Protocol.TCP, at)
    sockets.ensure(port, (0,))
    with (
        socket.socket(fileno=os.dup(sockets.fileno(port, 0))) as listening,
        socket.create_connection(("127.0.0.1", at.port)),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert not os.get_blocking(listening.fileno())
        # tcpi_sacked of a listening socket is its backlog (tcp(7), net/ipv4/tcp.c tcp_get_info)
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        backlog = struct.unpack_from("I", info, 8 + 4 * 5)[0]
        assert backlog == min(listeners.BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    sockets.close()


def test_single_ports_of_a_listen() -> None:
    listen = Listener("dns", Protocol.UDP, Listen(ip_address("::1"), 80, 82))
    assert [str(it) for it in listeners.ports_of(listen)] == ["[::1]:80/udp", "[::1]:81/udp", "[::1]:82/udp"]


@pytest.mark.parametrize(
    ("limit", "told"),
    [("128\n", "it is 128"), ("4095\n", "set it to 4096"), ("4096\n", None), ("junk", None), (None, None)],
)
def test_a_kernel_that_lets_few_connections_wait_is_told_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, told: str | None
) -> None:
    place = tmp_path / "somaxconn"
    monkeypatch.setattr(listeners, "SOMAXCONN", place)
    if limit is not None:
        place.write_text(limit)
    trouble = listeners.backlog_trouble()
    assert (told in trouble) if told is not None and trouble is not None else trouble is told
