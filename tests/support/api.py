# SPDX-License-Identifier: Apache-2.0
"""A daemon that is not there: a Facade with made-up state, served on a real unix socket by a thread."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairlead.api.server import ApiServer
from fairlead.errors import Conflict, NotFound
from fairlead.model.net import FlowQuestion
from fairlead.model.pool import AdminState
from fairlead.model.views import (
    ChangeResult,
    EventView,
    ExplainStep,
    ExplainView,
    FlowPage,
    FlowView,
    HealthView,
    ServerView,
    ServiceView,
    StatusView,
    VipView,
    VrrpView,
    WorkerView,
)

CLIENT = "203.0.113.77"  # occurs in connections only, and never in metrics


def server_view(name: str, port: int, **changes: Any) -> ServerView:
    """A server of pool ``web`` that is up."""
    made = ServerView(
        key=f"web/{name}",
        pool="web",
        name=name,
        address=f"127.0.0.1:{port}",
        weight=1,
        effective_weight=1,
        backup=False,
        admin="ready",
        health="up",
        idle_reason=None,
        down_reason=None,
        detail="",
        since_at=1_700_000_000.0,
        drain_deadline_at=None,
        max_connections=0,
        active=12,
        connections_total=1500,
        connect_failures_total=2,
        bytes_in_total=4096,
        bytes_out_total=5_000_000,
    )
    return dataclasses.replace(made, **changes)


class FakeFacade:
    """Implements ``fairlead.api.facade.Facade``; set ``failure`` and the next question raises it."""

    def __init__(self) -> None:
        self.servers_by_key = {
            "web/web-1": server_view("web-1", 9001),
            "web/web-2": server_view("web-2", 9002, weight=2, effective_weight=2),
            "web/127.0.0.1:9003": server_view(
                "127.0.0.1:9003", 9003, health="down", effective_weight=0, idle_reason="down", down_reason="refused",
                detail="connection refused", active=0,
            ),
        }  # fmt: skip
        self.flows = tuple(
            FlowView(
                "web", "web/web-1", f"{CLIENT}:{1024 + n}", "127.0.0.1:8080", "established", 61.5, 0.2, n, 2 * n, 0
            )
            for n in range(250)
        )
        self.history: list[EventView] = []
        self.writes: list[tuple[Any, ...]] = []
        self.failure: BaseException | None = None
        self.is_ready = True
        self.digest = "ab" * 16
        self.detail: str | None = None
        self.flow_pages = 0
        self._waiters: set[asyncio.Future[None]] = set()
        for number in range(1, 4):
            self.add_event("server_up", f"web/web-{number}", "probe passed")

    def add_event(self, kind: str, subject: str, message: str) -> None:
        """Record an event; from the server's thread only, or before it starts."""
        self.history.append(EventView(len(self.history) + 1, 1_700_000_000.5, kind, subject, message))
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def status(self) -> StatusView:
        self._fail()
        workers = (WorkerView(0, 101, 12, True, 40, 1024, 0), WorkerView(1, 102, 0, True, 16, 1024, 1))
        return StatusView(
            version="0.1.0", pid=100, started_at=1_700_000_000.0, config_file="/etc/fairlead/fairlead.yaml",
            config_digest=self.digest, last_reload_at=1_700_000_001.0, last_reload_ok=True,
            last_reload_error=self.detail,
            converged=True, pending_error=None, drift_repairs_total=3, workers=workers,
        )  # fmt: skip

    def ready(self) -> bool:
        return self.is_ready

    async def services(self) -> tuple[ServiceView, ...]:
        self._fail()
        web = ServiceView(
            name="web", listen=("127.0.0.1:8080", "[::1]:8080"), protocol="tcp", pool="web", forwarding="proxy",
            engine="userspace", scheduler="maglev", state="degraded", mode="forward", active=24, queued=2,
            connections_total=3000, bytes_in_total=8192, bytes_out_total=10_000_000,
            rejected={"no_server": 3, "denied": 1},
            servers=tuple(self.servers_by_key.values()),
        )  # fmt: skip
        return (web,)

    async def servers(self) -> tuple[ServerView, ...]:
        self._fail()
        return tuple(self.servers_by_key.values())

    def health(self) -> tuple[HealthView, ...]:
        self._fail()
        return tuple(
            HealthView(
                address=server.address, type="http", pools=("web",), verdict=str(server.health), streak=0,
                reason=server.down_reason, detail=server.detail, since_at=1_700_000_000.0,
                last_probe_at=1_700_000_009.0,                last_duration_s=0.0012, probes_total=9, failures_total=1,
            )
            for server in self.servers_by_key.values()
        )  # fmt: skip

    def vips(self) -> tuple[VipView, ...]:
        self._fail()
        return (
            VipView(
                vip="192.0.2.10/24", interface="eth0", owner="pair", state="active", held=True,
                since_at=1_700_000_000.0, active="192.0.2.1", answered_by=("02:00:00:00:00:07",), conflict=True,
                conflicts_total=2, restored_total=1, detail="timeout",
            ),
        )  # fmt: skip

    def vrrp(self) -> tuple[VrrpView, ...]:
        self._fail()
        return (
            VrrpView(
                name="pair", interface="eth0", vrid=51, version=3, state="active", priority=100,
                configured_priority=100, why="timeout", since_at=1_700_000_000.0, active="192.0.2.1", released=False,
                transitions_total=3, sent_total=700, received_total=20, conflicts_total=4,
                invalid={"ttl": 5, "checksum": 6},
            ),
        )  # fmt: skip

    async def move_vip(self, address: str, action: str, *, dry_run: bool) -> ChangeResult:
        self._fail()
        if address != "192.0.2.10":
            raise NotFound(f"no vip {address}; did you mean 192.0.2.10?")
        if not dry_run:
            self.writes.append((action, address))
        return ChangeResult((f"{action} 192.0.2.10/24",))

    def events(self, after: int, limit: int) -> tuple[EventView, ...]:
        self._fail()
        return tuple(event for event in self.history if event.id > after)[:limit]

    async def wait_event(self, after: int, timeout_s: float) -> None:
        if self.history and self.history[-1].id > after:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)

    async def explain(self, question: FlowQuestion, without: str | None) -> ExplainView:
        self._fail()
        steps = (ExplainStep("service", f"{question.vip} is service web"),)
        ends = str(question.client), str(question.vip)
        return ExplainView(*ends, question.protocol, "web", "web/web-1", steps, without)

    async def connections(self, service: str | None, server: str | None, cursor: str | None, limit: int) -> FlowPage:
        self._fail()
        self.flow_pages += 1
        if service not in {None, "web"}:
            raise NotFound(f"no service {service!r}; did you mean web?")
        try:
            start = int(cursor or "0")
        except ValueError:
            raise Conflict(f"cursor {cursor!r} is not known; start again without one") from None
        chosen = [flow for flow in self.flows if server in {None, flow.server}]
        page = tuple(chosen[start : start + limit])
        return FlowPage(page, str(start + limit) if start + limit < len(chosen) else None)

    async def set_server(
        self, key: str, *, admin: AdminState | None, weight: int | None, dry_run: bool
    ) -> ChangeResult:
        self._fail()
        if key not in self.servers_by_key:
            raise NotFound(f"no server {key!r}; did you mean web/web-1 or web/web-2?")
        server = self.servers_by_key[key]
        changes = []
        if admin is not None and admin != server.admin:
            changes.append(f"{key}: {server.admin} -> {admin}")
            server = dataclasses.replace(server, admin=str(admin))
        if weight is not None and weight != server.weight:
            changes.append(f"{key}: weight {server.weight} -> {weight}")
            server = dataclasses.replace(server, weight=weight)
        if not dry_run:
            self.writes.append((key, admin, weight))
            self.servers_by_key[key] = server
        return ChangeResult(tuple(changes))

    async def reload(self, dry_run: bool) -> ChangeResult:
        self._fail()
        if not dry_run:
            self.writes.append(("reload",))
        return ChangeResult(("service web: idle_timeout 350s -> 60s",))


class Serving:
    """A Facade served on ``socket`` by a thread of its own."""

    def __init__(self, facade: FakeFacade, path: Path) -> None:
        self.facade = facade
        self.socket = path
        self.loop = asyncio.new_event_loop()
        self.server = ApiServer(facade, path)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.run(self.server.start())

    def stop(self) -> None:
        self.run(self.server.stop())

    def end(self) -> None:
        """Stop the server and the thread."""
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, awaitable: Any) -> Any:
        """Await something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result(20)

    def add_event(self, kind: str, subject: str, message: str) -> None:
        """Record an event from the test's thread."""

        async def add() -> None:
            self.facade.add_event(kind, subject, message)

        self.run(add())

    def ask(
        self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPResponse]:
        """One request on a connection of its own: status, decoded body, response."""
        connection = UnixConnection(self.socket)
        try:
            encoded = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, target, encoded, dict(headers or {}))
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = "json" in response.headers.get("content-type", "")
        return response.status, json.loads(content) if is_json and content else content.decode(), response

    def raw(self, octets: bytes, timeout_s: float = 10) -> bytes:
        """Send octets, close our direction, and read until the server closes."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_s)
            client.connect(str(self.socket))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(octets)
                client.shutdown(socket.SHUT_WR)
            return read_all(client)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def read_all(client: socket.socket) -> bytes:
    """Read until the peer closes."""
    chunks = []
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


@contextlib.contextmanager
def serving(path: Path, facade: FakeFacade | None = None) -> Iterator[Serving]:
    """A fake daemon for the block."""
    made = Serving(facade or FakeFacade(), path)
    made.start()
    try:
        yield made
    finally:
        made.end()
