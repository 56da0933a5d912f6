# SPDX-License-Identifier: Apache-2.0
"""HAProxy and nginx as neighbours: in front of fairlead and behind it, with PROXY headers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

from support.processes import accepts, free_port
from support.wait import until


class Program:
    """A daemon in the foreground that listens at a port."""

    def __init__(self, directory: Path, name: str, command: list[str], port: int) -> None:
        self.port = port
        self._log = directory / f"{name}.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """ADDRESS:PORT."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until(lambda: accepts("127.0.0.1", self.port), 10, f"it accepts: {self._log.read_text()}")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def haproxy(directory: Path, frontend: str) -> Program:
    """``frontend`` is a section with ``{port}`` where it binds."""
    port = free_port()
    file = directory / f"haproxy-{port}.cfg"
    defaults = "defaults\n  timeout connect 5s\n  timeout client 10s\n  timeout server 10s\n"
    file.write_text(f"global\n  maxconn 200\n{defaults}{frontend.replace('{port}', str(port))}\n")
    return Program(directory, f"haproxy-{port}", ["haproxy", "-db", "-f", str(file)], port)


def nginx(directory: Path, body: str) -> Program:
    """``body`` stands at the top level, with ``{port}`` where it listens."""
    port = free_port()
    home = directory / f"nginx-{port}"
    home.mkdir()
    file = home / "nginx.conf"
    file.write_text(
        f"daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;\n"
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nevents {}\n" + body.replace("{port}", str(port))
    )
    return Program(directory, f"nginx-{port}", ["nginx", "-c", str(file), "-p", str(home)], port)


def nginx_http_paths(directory: Path) -> str:
    """Where nginx keeps its temporary files."""
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"{name}_temp_path {directory}/{name}; " for name in names) + "access_log off; "
