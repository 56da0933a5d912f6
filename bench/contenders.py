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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import Cpus, tree

HOST = "127.0.0.1"
CONNECTIONS = 30000
START_S = 15.0
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


def wait_for(port: int, what: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when ``port`` accepts.

    Raises:
        SystemExit: It does not in time, or its process has ended.
    """
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.02)
    raise SystemExit(f"bench: {what} does not accept connections: {log.read_text()[-2000:]}")


@dataclass
class Contender:
    """One load balancer under test; ``command`` None is the direct connection."""

    name: str
    port: int
    command: Sequence[str] | None
    directory: Path
    cpus: Cpus
    datagrams: bool = True  # forwards UDP at the same port
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it on the balancer's CPUs and wait until it forwards."""
        if self.command is None:
            return
        log = self.directory / f"{self.name}.log"
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, sorted(self.cpus.balancer))), *self.command],
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
                # Autogroup scheduling shares the CPU between sessions: all contenders must be one of their own, as
                # fairlead's workers are anyway.
                start_new_session=True,
            )
        wait_for(self.port, self.name, self.process, log)

    def pids(self) -> list[int]:
        """All its processes."""
        return [] if self.process is None else tree(self.process.pid)

    def stop(self) -> None:
        """End it with all its processes."""
        if self.process is None:
            return
        pids = self.pids()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def fairlead(name: str, servers: Sequence[int], directory: Path, cpus: Cpus) -> Contender:
    """Ourselves; one worker per CPU of the balancer."""
    port = free_port()
    file = directory / f"{name}.yaml"
    addresses = ", ".join(f"{HOST}:{server}" for server in servers)
    file.write_text(
        f"services:\n  bench: {{listen: {HOST}:{port}, pool: bench}}\n"
        f"  datagrams: {{listen: {HOST}:{port}, protocol: udp, pool: bench}}\n"
        f"pools:\n  bench:\n    servers: [{addresses}]\n    health: {{type: tcp, interval: 2s, timeout: 1s}}\n"
    )
    program = [sys.executable, "-c", "from fairlead.app import main; main()"]
    command = [*program, "run", str(file), "--socket", str(directory / f"{name}.sock")]
    return Contender(name, port, command, directory, cpus)


def haproxy(name: str, servers: Sequence[int], directory: Path, cpus: Cpus, *, splice: bool) -> Contender:
    """HAProxy in TCP mode, with as many threads as we have workers; splicing takes descriptors for pipes as well."""
    port = free_port()
    option = "  option splice-auto\n" if splice else ""
    file = directory / f"{name}.cfg"
    lines = "\n".join(f"  server s{n} {HOST}:{server} check inter 2s" for n, server in enumerate(servers))
    file.write_text(
        f"global\n  nbthread {len(cpus.balancer)}\n  maxconn {limit() // 2 if splice else limit()}\n"
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 350s\n  timeout server 350s\n"
        f"  retries 3\n  option redispatch\n{option}"
        f"listen bench\n  bind {HOST}:{port} backlog 4096\n  balance roundrobin\n{lines}\n"
    )
    return Contender(name, port, ["haproxy", "-db", "-f", str(file)], directory, cpus, datagrams=False)


def nginx(name: str, servers: Sequence[int], directory: Path, cpus: Cpus) -> Contender:
    """The stream module of nginx, with as many workers as we have."""
    port = free_port()
    file = directory / f"{name}.conf"
    module = next((path for path in NGINX_STREAM if path.exists()), None)
    lines = " ".join(f"server {HOST}:{server};" for server in servers)
    workers = len(cpus.balancer)
    file.write_text(
        (f"load_module {module};\n" if module else "")
        + f"daemon off; pid {directory}/{name}.pid; error_log {directory}/{name}.error warn;\n"
        f"worker_processes {workers}; worker_rlimit_nofile {descriptors()};\n"
        f"events {{ worker_connections {descriptors() - 100}; }}\n"
        f"stream {{\n  upstream bench {{ {lines} }}\n"
        f"  server {{ listen {HOST}:{port} backlog=4096{' reuseport' if workers > 1 else ''}; proxy_pass bench;\n"
        "    proxy_connect_timeout 5s; proxy_timeout 350s; }\n"
        f"  server {{ listen {HOST}:{port} udp{' reuseport' if workers > 1 else ''}; proxy_pass bench;"
        " proxy_timeout 60s; }\n}\n"
    )
    return Contender(name, port, ["nginx", "-c", str(file), "-p", str(directory)], directory, cpus)


def direct(servers: Sequence[int], directory: Path, cpus: Cpus) -> Contender:
    """No load balancer: what the clients and servers can do by themselves."""
    return Contender("direct", servers[0], None, directory, cpus)


def descriptors() -> int:
    """File descriptors a process may have here, at most what the benchmark needs."""
    return min(2 * CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def limit() -> int:
    """Connections a proxy can hold with that many descriptors."""
    return (descriptors() - 200) // 2
