# SPDX-License-Identifier: Apache-2.0
"""The demo's servers and its client are real: processes, ports and requests."""

from __future__ import annotations

import asyncio
import os
import socket
import urllib.request

import pytest

from fairlead.demo.servers import DemoServers
from fairlead.demo.traffic import Traffic
from fairlead.errors import FairleadError
from support.processes import accepts, free_port
from support.wait import until

pytestmark = pytest.mark.system


def get(port: int, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def test_each_server_answers_with_its_name_and_says_it_is_healthy() -> None:
    with DemoServers({"blue": 0, "green": 0}) as servers:
        assert get(servers.ports["blue"]) == "blue\n"
        assert get(servers.ports["green"]) == "green\n"
        assert get(servers.ports["green"], "/healthz") == "ok\n"


def test_a_connection_carries_many_requests_also_pipelined_and_in_pieces() -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with DemoServers({"blue": 0}) as servers, socket.create_connection(("127.0.0.1", servers.ports["blue"])) as s:
        s.sendall(request + request[:9])
        s.sendall(request[9:])
        received = b""
        while received.count(b"blue\n") < 2:
            received += s.recv(4096)
        assert received.count(b"HTTP/1.1 200 OK") == 2


def test_what_is_not_a_get_is_refused() -> None:
    with DemoServers({"blue": 0}) as servers, socket.create_connection(("127.0.0.1", servers.ports["blue"])) as s:
        s.sendall(b"POST / HTTP/1.1\r\n\r\n")
        assert s.recv(4096).startswith(b"HTTP/1.1 405")


def test_a_killed_server_is_gone_and_comes_back_on_its_port() -> None:
    with DemoServers({"blue": 0}) as servers:
        port, pid = servers.ports["blue"], servers.pids["blue"]
        servers.kill("blue")
        assert not accepts("127.0.0.1", port)
        assert servers.pids == {}
        servers.revive("blue")
        assert servers.ports["blue"] == port
        assert servers.pids["blue"] != pid
        assert get(port) == "blue\n"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        servers = DemoServers({"blue": port})
        with pytest.raises(FairleadError, match=rf"demo server blue could not start: cannot listen on .*:{port}: "):
            servers.start()


def test_traffic_counts_who_answered_and_what_failed() -> None:
    async def some_traffic(port: int, count: int) -> Traffic:
        traffic = Traffic("127.0.0.1", port, 500, lambda _: None)
        task = asyncio.create_task(traffic.run())
        done = lambda: traffic.answered.total() + traffic.failures >= count  # noqa: E731
        await asyncio.to_thread(until, done, 10, f"{count} requests have ended")
        task.cancel()
        await asyncio.wait([task])
        return traffic

    with DemoServers({"blue": 0}) as servers:
        traffic = asyncio.run(some_traffic(servers.ports["blue"], 20))
        assert traffic.failures == 0
        assert set(traffic.answered) == {"blue"}
    traffic = asyncio.run(some_traffic(free_port(), 5))
    assert traffic.failures >= 5
    assert not traffic.answered
