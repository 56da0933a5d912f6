# SPDX-License-Identifier: Apache-2.0
"""Real programs for system tests: each a context manager that ends what it started, by its process id."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from support.wait import until

# Test processes beside each other begin at different places and so hardly ever meet.
_PORTS = (10000 + (os.getpid() * 997 + n) % 20000 for n in itertools.count())
CLI = (sys.executable, "-m", "fairlead")


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody uses now, on any address, and that no client is given: below the ephemeral range.

    A port from bind(0) would be free only until some connection of a test beside this one gets it as its own.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(1000):
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind(("::" if family == socket.AF_INET6 else "", port))
            return port
    raise AssertionError("no free port")


def accepts(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


class Nginx:
    """nginx as a real server that answers every request with its name."""

    def __init__(self, directory: Path, name: str, port: int | None = None, extra: str = "") -> None:
        self.name, self.port = name, port or free_port()
        self.directory = directory / f"nginx-{name}"
        self.directory.mkdir(exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        (self.directory / "data").mkdir(exist_ok=True)
        self.configuration = self.directory / "nginx.conf"
        self.configuration.write_text(
            textwrap.dedent(f"""\
            daemon off; master_process off; pid {self.directory}/pid; error_log {self.directory}/error.log;
            events {{ worker_connections 16384; }}
            http {{
              access_log {self.directory}/access.log combined;
              client_body_temp_path {self.directory}/b; proxy_temp_path {self.directory}/p;
              fastcgi_temp_path {self.directory}/f; uwsgi_temp_path {self.directory}/u;
              scgi_temp_path {self.directory}/s;
              keepalive_requests 1000000;
              server {{
                listen 127.0.0.1:{self.port} backlog=4096;
                location / {{ return 200 "{name}\\n"; }}
                location /data/ {{ root {self.directory}; }}
                {extra}
              }}
            }}
            """)
        )

    @property
    def address(self) -> str:
        """ADDRESS:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running nginx."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it accepts."""
        self._process = subprocess.Popen(
            ["nginx", "-c", str(self.configuration), "-p", str(self.directory)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: accepts("127.0.0.1", self.port), 10, f"nginx {self.name} accepts")

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def requests(self) -> int:
        """Requests answered so far, by the access log."""
        return len((self.directory / "access.log").read_bytes().splitlines())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """``fairlead run`` with a configuration file, and the command line beside it."""

    def __init__(self, directory: Path, configuration: str, arguments: Sequence[str] = ()) -> None:
        self.directory = directory
        self.file = directory / "fairlead.yaml"
        self.file.write_text(configuration)
        self.socket = directory / "api.sock"
        self.runtime = directory / "api.d"
        self.log = directory / "daemon.log"
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*CLI, "run", str(self.file), "--socket", str(self.socket), *self._arguments],
                stdout=log,
                stderr=log,
            )
        until(self._ready, 20, f"the daemon is ready: {self.log.read_text()}")

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended: {self.log.read_text()}"
        with contextlib.suppress(OSError):
            return self.ask("GET", "/readyz")[0] == 200
        return False

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one verb against this daemon."""
        return subprocess.run(
            [*CLI, *arguments, "--socket", str(self.socket)],
            capture_output=True,
            text=True,
            check=check,
            timeout=30,
        )

    def show(self, what: str) -> list[dict[str, object]]:
        """``fairlead show WHAT -o json``, decoded."""
        return json.loads(self.cli("show", what, "-o", "json").stdout)  # type: ignore[no-any-return]

    @property
    def pid(self) -> int:
        """Process id of the agent."""
        assert self.process is not None
        return self.process.pid

    def reload(self) -> None:
        """``POST /v1/reload``; quicker than a process of the command line for each of many."""
        status, body = self.ask("POST", "/v1/reload")
        assert status == 200, body

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """One request to the API: status and body."""
        connection = UnixConnection(str(self.socket))
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        status = json.loads(self.cli("show", "status", "-o", "json").stdout)
        return [worker["pid"] for worker in status["workers"]]

    def worker_pids_left(self) -> list[int]:
        """Process ids of workers that run, whether or not there is an agent."""
        return _workers_of(self.runtime)

    def is_running(self) -> bool:
        """Whether the agent runs."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent."""
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self, timeout_s: float) -> int:
        """Wait for the agent's end; its exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def run_to_its_end(self, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Start it as one that is expected to refuse."""
        return subprocess.run(
            [*CLI, "run", str(self.file), "--socket", str(self.socket)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def kill(self) -> None:
        """SIGKILL of the agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Fast stop of everything; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        pids = _workers_of(self.runtime)
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _workers_of(runtime: Path) -> list[int]:
    """Workers that serve control sockets in ``runtime``, also when their agent is gone.

    Asking them over the socket would take it from the agent.
    """
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{runtime}/worker-".encode() in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
    return found


@contextlib.contextmanager
def wrk(url: str, *, seconds: int, connections: int = 16, close: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Wrk under way; read its report with ``report`` after the block."""
    command = ["wrk", "--timeout", "20s", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
    if close:
        command[1:1] = ["-H", "Connection: close"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
