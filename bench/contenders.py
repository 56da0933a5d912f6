# SPDX-License-Identifier: Apache-2.0
"""The load balancers that are compared, each configured as one would in production, in front of the same servers."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.machine import Cpus, tree

HOST = "127.0.0.1"
CONNECTIONS = 30000
START_S = 30.0
NGINX_STREAM = (
    Path("/usr/lib/nginx/modules/ngx_stream_module.so"),
    Path("/usr/lib64/nginx/modules/ngx_stream_module.so"),
)
SOURCE = Path(__file__).resolve().parents[1] / "src"


def free_port() -> int:
    """A TCP port nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def accepts(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def wait_for(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when ``ready``.

    Raises:
        SystemExit: It is not in time, or its process has ended.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return
        time.sleep(0.02)
    raise SystemExit(f"bench: {what} does not accept connections: {log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Place:
    """Where a load balancer stands.

    Attributes:
        host: The address it listens on.
        port: The port.
        servers: ADDRESS:PORT of the real servers.
        directory: For its configuration and its log.
        cpus: Those of the balancer are its own.
        enter: What a command is prefixed with to run there.
        clients: What a command is prefixed with to run where the clients are.
    """

    host: str
    port: int
    servers: tuple[str, ...]
    directory: Path
    cpus: Cpus
    enter: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()

    @property
    def listen(self) -> str:
        """ADDRESS:PORT."""
        return f"{self.host}:{self.port}"


@dataclass
class Contender:
    """One load balancer under test; ``command`` None: nothing has to run (the direct connection for one)."""

    name: str
    place: Place
    command: Sequence[str] | None
    datagrams: bool = True  # forwards UDP at the same port
    ready: Callable[[], bool] | None = None  # default: it accepts
    threads: list[int] = field(default_factory=list)  # of the kernel, that work for it alone
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def launch(self) -> None:
        """Start it on the balancer's CPUs; ``wait`` says when it forwards."""
        if self.command is None:
            return
        place = self.place
        pinned = ["taskset", "-c", ",".join(map(str, sorted(place.cpus.balancer)))]
        with self._log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*place.enter, *pinned, *self.command],
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                # Autogroup scheduling shares the CPU between sessions: all contenders must be one of their own, as
                # fairlead's workers are anyway.
                start_new_session=True,
            )

    @property
    def _log(self) -> Path:
        return self.place.directory / f"{self.name}.log"

    def wait(self) -> None:
        """Return when it forwards.

        Raises:
            SystemExit: It does not in time, or has ended.
        """
        if self.process is not None:
            ready = self.ready or (lambda: accepts(self.place.host, self.place.port))
            wait_for(ready, self.name, self.process, self._log)

    def pids(self) -> list[int]:
        """All its processes, and the threads of the kernel that work for it."""
        return [*self.threads, *(tree(self.process.pid) if self.process is not None else [])]

    def stop(self) -> None:
        """End it with all its processes."""
        if self.process is None:
            return
        pids = tree(self.process.pid)
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def run_fairlead(name: str, place: Place, text: str, *, datagrams: bool = True) -> Contender:
    """Ourselves, with this configuration."""
    file = place.directory / f"{name}.yaml"
    file.write_text(text)
    program = [sys.executable, "-c", "from fairlead.app import main; main()"]
    command = [*program, "run", str(file), "--socket", str(place.directory / f"{name}.sock")]
    return Contender(name, place, command, datagrams)


def fairlead(name: str, place: Place) -> Contender:
    """Our proxy; one worker per CPU of the balancer."""
    text = (
        f"services:\n  bench: {{listen: {place.listen}, pool: bench}}\n"
        f"  datagrams: {{listen: {place.listen}, protocol: udp, pool: bench}}\n"
        f"pools:\n  bench:\n    servers: [{', '.join(place.servers)}]\n"
        "    health: {type: tcp, interval: 2s, timeout: 1s}\n"
    )
    return run_fairlead(name, place, text)


def haproxy(name: str, place: Place, *, splice: bool = False) -> Contender:
    """HAProxy in TCP mode, with as many threads as we have workers; splicing takes descriptors for pipes as well."""
    option = "  option splice-auto\n" if splice else ""
    file = place.directory / f"{name}.cfg"
    lines = "\n".join(f"  server s{n} {server} check inter 2s" for n, server in enumerate(place.servers))
    file.write_text(
        f"global\n  nbthread {len(place.cpus.balancer)}\n  maxconn {limit() // 2 if splice else limit()}\n"
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 350s\n  timeout server 350s\n"
        f"  retries 3\n  option redispatch\n{option}"
        f"listen bench\n  bind {place.listen} backlog 4096\n  balance roundrobin\n{lines}\n"
    )
    return Contender(name, place, ["haproxy", "-db", "-f", str(file)], datagrams=False)


def nginx(name: str, place: Place) -> Contender:
    """The stream module of nginx, with as many workers as we have."""
    directory = place.directory
    file = directory / f"{name}.conf"
    module = next((path for path in NGINX_STREAM if path.exists()), None)
    lines = " ".join(f"server {server};" for server in place.servers)
    workers = len(place.cpus.balancer)
    file.write_text(
        (f"load_module {module};\n" if module else "")
        + f"daemon off; pid {directory}/{name}.pid; error_log {directory}/{name}.error warn;\n"
        f"worker_processes {workers}; worker_rlimit_nofile {descriptors()};\n"
        f"events {{ worker_connections {descriptors() - 100}; }}\n"
        f"stream {{\n  upstream bench {{ {lines} }}\n"
        f"  server {{ listen {place.listen} backlog=4096{' reuseport' if workers > 1 else ''}; proxy_pass bench;\n"
        "    proxy_connect_timeout 5s; proxy_timeout 350s; }\n"
        f"  server {{ listen {place.listen} udp{' reuseport' if workers > 1 else ''}; proxy_pass bench;"
        " proxy_timeout 60s; }\n}\n"
    )
    return Contender(name, place, ["nginx", "-c", str(file), "-p", str(directory)])


def direct(name: str, place: Place) -> Contender:
    """No load balancer: what the clients and servers can do by themselves."""
    host, _, port = place.servers[0].rpartition(":")
    return Contender(name, replace(place, host=host, port=int(port)), None)


def descriptors() -> int:
    """File descriptors a process may have here, at most what the benchmark needs."""
    return min(2 * CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def limit() -> int:
    """Connections a proxy can hold with that many descriptors."""
    return (descriptors() - 200) // 2
