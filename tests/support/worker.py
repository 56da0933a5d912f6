# SPDX-License-Identifier: Apache-2.0
"""A proxy worker under test: the program and its control socket."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from support.peers import Datagrams, Server, was_reset
from support.wait import until
from support.worker_abi import Kind, Layouts, Memory, Mode, Scheduler, State, Value, address, endpoint

SOURCES = Path(__file__).resolve().parents[2] / "worker"
SEED = bytes(range(16))
Record = tuple[bytes, list[int]]  # a message and the descriptors that came with it
SANITIZERS: Mapping[str, str] = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def build(target: str, directory: Path) -> Path:
    """The program built by ``worker/Makefile`` into ``directory``; ``target`` is all or asan."""
    subprocess.run(["make", "-s", "-C", str(SOURCES), target, f"OUT={directory}"], check=True)
    return directory / ("fairlead-worker-asan" if target == "asan" else "fairlead-worker")


def build_once(target: str, factory: pytest.TempPathFactory) -> Path:
    """The same for all test processes of a run."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"worker-{target}"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build(target, place)


class Refused(Exception):
    """The worker answered with an error."""

    def __init__(self, error: int, message: str) -> None:
        super().__init__(f"{os.strerror(error)}: {message}")
        self.error = error


class Control:
    """One connection to a worker's control socket."""

    def __init__(self, layouts: Layouts, connection: socket.socket) -> None:
        self._layouts = layouts
        self.socket = connection
        self.socket.settimeout(20)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._seq = 0

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([message], ancillary)

    def receive(self) -> tuple[bytes, list[int]]:
        message, ancillary, flags, _ = self.socket.recvmsg(1 << 19, socket.CMSG_SPACE(16 * 4))
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        assert message, "the worker closed the connection"
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data)
        return message, list(descriptors)

    def answer(self) -> tuple[list[Record], dict[str, Any]]:
        """The records and the FL_DONE of an answer."""
        records: list[Record] = []
        while True:
            answer, passed = self.receive()
            if int.from_bytes(answer[:2], "little") == Kind.DONE:
                assert not passed
                done = self._layouts.unpack("done", answer)
                done["seq"] = int.from_bytes(answer[4:8], "little")
                done["message"] = done["message"].rstrip(b"\0").decode()
                return records, done
            records.append((answer, passed))

    def raw(self, message: bytes, descriptors: Sequence[int] = ()) -> tuple[list[Record], dict[str, Any]]:
        """Send any bytes and read the answer."""
        self.send(message, descriptors)
        return self.answer()

    def post(
        self, kind: int, structure: str = "header", tail: bytes = b"", descriptors: Sequence[int] = (), **values: Value
    ) -> None:
        """Send a well-formed request."""
        self._seq += 1
        header = struct.pack("=HHI", kind, 0, self._seq)
        self.send(header + self._layouts.pack(structure, **values)[len(header) :] + tail, descriptors)

    def collect(self) -> list[Record]:
        """The records of the answer to the last request. Raises Refused."""
        records, done = self.answer()
        assert done["seq"] == self._seq
        for record, _ in records:
            assert int.from_bytes(record[4:8], "little") == self._seq
        self.cursor = done["cursor"]
        if done["error"]:
            raise Refused(done["error"], done["message"])
        return records

    def ask(
        self, kind: int, structure: str = "header", tail: bytes = b"", descriptors: Sequence[int] = (), **values: Value
    ) -> list[Record]:
        """``post`` and ``collect``."""
        self.post(kind, structure, tail, descriptors, **values)
        return self.collect()


@dataclass
class Flow:
    """One record of FL_FLOWS."""

    service: int
    server: int
    client: tuple[str, int]
    vip: tuple[str, int]
    state: State
    age_ms: int
    idle_ms: int
    bytes_in: int
    bytes_out: int


@dataclass
class Held:
    """What FL_DUMP told, by id."""

    servers: dict[int, dict[str, Any]] = field(default_factory=dict)
    tables: dict[int, dict[str, Any]] = field(default_factory=dict)
    services: dict[int, dict[str, Any]] = field(default_factory=dict)
    listeners: list[tuple[int, str, int]] = field(default_factory=list)


class Worker:
    """A running worker with a control connection; ends it by FL_QUIT and looks for sanitizer reports."""

    def __init__(
        self,
        program: Path,
        directory: Path,
        *,
        slot: int = 0,
        memory: Memory | None = None,
        descriptors: int | None = None,
    ) -> None:
        self.layouts = Layouts(program)
        self.slot = slot
        self.path = directory / f"worker-{slot}-{len(list(directory.iterdir()))}.sock"
        self._log = directory / f"{self.path.stem}.log"
        self._own_memory = memory is None
        self.memory = memory or Memory(self.layouts)
        command = [str(program), "--control", str(self.path), "--slot", str(slot)]
        if descriptors:
            command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *command]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **SANITIZERS})
        self._controls: list[socket.socket] = []
        self._sockets: list[socket.socket] = []
        try:
            until(self.path.exists, 10, "the worker binds its control socket")
            self.control = self.connect()
            self.control.ask(Kind.ATTACH, "attach", slot=slot, descriptors=[self.memory.fd])
        except BaseException:
            self.end()
            raise

    def connect(self) -> Control:
        """A new control connection; the worker drops the former one."""
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._controls.append(s)
        until(lambda: self.process.poll() is not None or s.connect_ex(str(self.path)) == 0, 10, "the worker listens")
        return Control(self.layouts, s)

    def hello(self) -> dict[str, Any]:
        [(record, _)] = self.control.ask(Kind.HELLO)
        return self.layouts.unpack("hello", record)

    def server(
        self,
        number: int,
        where: tuple[Any, ...],
        *,
        weight: int = 1,
        max_connections: int = 0,
        reset: bool = False,
        unpin: bool = False,
    ) -> None:
        self.control.ask(
            Kind.SERVER_PUT,
            "server",
            id=number,
            weight=weight,
            max_connections=max_connections,
            flags=int(reset) | 2 * int(unpin),
            address=address(*where[:2]),
            key=f"pool/{number}".encode(),
        )

    def table(self, number: int, members: Sequence[int], slots: Sequence[int] | None = None) -> None:
        order = list(range(len(members))) if slots is None else slots
        tail = struct.pack(f"={len(members)}I{len(order)}H", *members, *order)
        self.control.ask(
            Kind.TABLE_PUT,
            "table",
            tail,
            id=number,
            size=len(order),
            members=len(members),
            digest=bytes([number % 256]) * 16,
        )

    def service(
        self, number: int = 1, table: int = 1, *, ranges: Sequence[tuple[str, str]] = (), **values: Any
    ) -> None:
        settings: dict[str, Any] = {
            "scheduler": Scheduler.MAGLEV,
            "mode": Mode.FORWARD if table else Mode.REJECT,
            "protocol": 6,
            "idle_ms": 60_000,
            "connect_ms": 5_000,
            "half_close_ms": 30_000,
            "retries": 3,
            "persist_v4": 32,
            "persist_v6": 128,
            "source_v4": 32,
            "source_v6": 64,
            "seed": SEED,
            "name": f"service-{number}".encode(),
        }
        tail = b"".join(address(low, 0)[:16] + address(high, 0)[:16] for low, high in ranges)
        settings |= {"id": number, "table": table, "ranges": len(ranges), **values}
        self.control.ask(Kind.SERVICE_PUT, "service", tail, **settings)

    def listen(
        self,
        service: int = 1,
        host: str = "127.0.0.1",
        *,
        backlog: int = 1024,
        at: socket.socket | None = None,
        datagrams: bool = False,
    ) -> tuple[str, int]:
        """A listener of the service on a free port; where it is."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = at.type if at else socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
        s = at or socket.socket(family, kind)
        if at is None:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((host, 0))
            if not datagrams:
                s.listen(backlog)
        where = s.getsockname()[:2]
        self.control.ask(
            Kind.LISTEN_PUT,
            "listen",
            service=service,
            protocol=17 if kind == socket.SOCK_DGRAM else 6,
            address=address(*where),
            descriptors=[s.fileno()],
        )
        if at is None:
            s.close()
        return (str(where[0]), int(where[1]))

    def listen_delete(self, service: int, where: tuple[str, int]) -> None:
        self.control.ask(Kind.LISTEN_DEL, "listen", service=service, address=address(*where))

    def delete_server(self, number: int) -> None:
        self.control.ask(Kind.SERVER_DEL, "id", id=number)

    def delete_table(self, number: int) -> None:
        self.control.ask(Kind.TABLE_DEL, "id", id=number)

    def delete_service(self, number: int) -> None:
        self.control.ask(Kind.SERVICE_DEL, "id", id=number)

    def simple(
        self, servers: Sequence[Server | Datagrams], *, host: str = "127.0.0.1", **values: Any
    ) -> tuple[str, int]:
        """One service with one listener over the servers, one slot each; UDP when that is what the servers speak."""
        datagrams = isinstance(servers[0], Datagrams)
        for number, server in enumerate(servers, 1):
            self.server(number, server.where)
        self.table(1, list(range(1, len(servers) + 1)))
        self.service(**{"protocol": 17 if datagrams else 6, **values})
        return self.listen(host=host, datagrams=datagrams)

    def dial(self, where: tuple[str, int], *, source: str = "", receive_buffer: int = 0) -> socket.socket:
        """A client connection, closed with the worker at the latest."""
        s = socket.socket(socket.AF_INET6 if ":" in where[0] else socket.AF_INET)
        self._sockets.append(s)
        s.settimeout(10)
        if receive_buffer:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            s.bind((source, 0))
        s.connect(where)
        return s

    def refuses(self, where: tuple[str, int], *, source: str = "") -> bool:
        """Whether a client there gets an RST (which may arrive before its connect returns)."""
        try:
            return was_reset(self.dial(where, source=source))
        except ConnectionResetError:
            return True

    def pair(self, where: tuple[str, int], server: Server) -> tuple[socket.socket, socket.socket]:
        """A client connection and what the server accepted for it."""
        return self.dial(where), server.accept()

    def flows(self, *, service: int = 0, server: int = 0, limit: int = 0, cursor: int = 0) -> list[Flow]:
        found = []
        for record, _ in self.control.ask(
            Kind.FLOWS, "flows", service=service, server=server, limit=limit, cursor=cursor
        ):
            raw = self.layouts.unpack("flow", record)
            for unwanted in ("header", "reserved"):
                raw.pop(unwanted)
            raw |= {"client": endpoint(raw["client"]), "vip": endpoint(raw["vip"]), "state": State(raw["state"])}
            found.append(Flow(**raw))
        return found

    def dump(self) -> Held:
        held = Held()
        for record, passed in self.control.ask(Kind.DUMP):
            assert not passed
            kind = int.from_bytes(record[:2], "little")
            name = {Kind.SERVER_PUT: "server", Kind.TABLE_PUT: "table", Kind.SERVICE_PUT: "service"}.get(Kind(kind))
            if name is None:
                listen = self.layouts.unpack("listen", record)
                held.listeners.append((listen["service"], *endpoint(listen["address"])))
                continue
            item = self.layouts.unpack(name, record)
            item.pop("header")
            item["tail"] = record[self.layouts.size(name) :]
            getattr(held, f"{name}s")[item["id"]] = item
        return held

    def rejected(self, reason: int, service: int = 1) -> int:
        return int(self.memory.service(service, self.slot)["rejected"][reason])

    def active(self, service: int = 1) -> int:
        return int(self.memory.service(service, self.slot)["active"])

    def descriptors(self) -> int:
        """How many it has open."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def log(self) -> str:
        return self._log.read_text()

    def settled(self) -> None:
        """Wait until no flow is left, and see that all accounts are balanced."""
        until(lambda: self.hello()["flows"] == 0, 10, "no flow is left")
        assert self.active() == 0
        assert self.memory.item("service", "shared_service", 1)["active"] == 0

    def end(self) -> None:
        """FL_QUIT on a fresh connection; fails with the worker's output when it did not end cleanly."""
        try:
            if self.process.poll() is None:
                with contextlib.suppress(OSError, AssertionError):
                    self.connect().ask(Kind.QUIT)
                self.process.wait(20)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for s in self._controls + self._sockets:
                s.close()
            if self._own_memory:
                self.memory.close()
        assert self.process.returncode in (0, -signal.SIGKILL), self.log()
        assert "ERROR" not in self.log(), self.log()
        assert "runtime error" not in self.log(), self.log()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
