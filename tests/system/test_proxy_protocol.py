# SPDX-License-Identifier: Apache-2.0
"""PROXY headers between fairlead and real programs, in both directions."""

from __future__ import annotations

import contextlib
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.processes import Daemon, free_port
from support.proxies import Program, haproxy, nginx, nginx_http_paths

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

# A client that is none of the addresses in between.
CLIENT = "127.0.0.77"


def ask(port: int, *, source: str = CLIENT, host: str = "127.0.0.1") -> str:
    """What the server at the end of the chain answers: the client that it sees, as ADDRESS:PORT."""
    with socket.create_connection((host, port), timeout=5, source_address=(source, 0)) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while part := s.recv(65536):
                data += part
        mine = s.getsockname()
    seen = data.rpartition(b"\n\n")[2] if b"\r\n\r\n" not in data else data.partition(b"\r\n\r\n")[2]
    return seen.decode().strip().replace(f"{mine[0]}:{mine[1]}", "the client")


def says_client(directory: Path, kind: str, *, accepts_header: bool) -> Program:
    """A server that answers with the client's address and port as it knows them."""
    if kind == "haproxy":
        accept = "accept-proxy" if accepts_header else ""
        answer = 'http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port]"'
        return haproxy(directory, f"frontend f\n  mode http\n  bind 127.0.0.1:{{port}} {accept}\n  {answer}\n")
    accept = "proxy_protocol" if accepts_header else ""
    variable = "$proxy_protocol_addr:$proxy_protocol_port" if accepts_header else "$remote_addr:$remote_port"
    paths = nginx_http_paths(directory)
    server = f'server {{ listen 127.0.0.1:{{port}} {accept}; location / {{ return 200 "{variable}"; }} }}'
    return nginx(directory, f"http {{ {paths} {server} }}")


def in_front(directory: Path, kind: str, version: str, to: int) -> Program:
    """A proxy that sends headers to the port."""
    if kind == "haproxy":
        how = {"v1": "send-proxy", "v2": "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority"}[version]
        return haproxy(
            directory,
            f"listen l\n  mode tcp\n  unique-id-format %{{+X}}o\\ %ci:%cp\n  bind 127.0.0.1:{{port}}\n"
            f"  server s 127.0.0.1:{to} {how}\n",
        )
    body = f"stream {{ server {{ listen 127.0.0.1:{{port}}; proxy_pass 127.0.0.1:{to}; proxy_protocol on; }} }}"
    return nginx(directory, body)


def configuration(port: int, server: str, *, accept: bool, send: str) -> str:
    return f"""\
services:
  web:
    listen: 127.0.0.1:{port}
    pool: web
    proxy_protocol: {{accept: {str(accept).lower()}, send: {send}}}
pools:
  web: {{servers: ["{server}"], health: none}}
"""


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_real_server_understands_our_headers(runtime: Path, kind: str, version: str) -> None:
    port = free_port()
    with ExitStack() as stack:
        server = stack.enter_context(says_client(runtime, kind, accepts_header=True))
        stack.enter_context(Daemon(runtime, configuration(port, server.address, accept=False, send=version)))
        assert [ask(port) for _ in range(3)] == ["the client"] * 3


@pytest.mark.parametrize(("kind", "version"), [("haproxy", "v1"), ("haproxy", "v2"), ("nginx", "v1")])
def test_we_understand_the_headers_of_a_real_proxy(runtime: Path, kind: str, version: str) -> None:
    port = free_port()
    with ExitStack() as stack:
        server = stack.enter_context(says_client(runtime, "nginx", accepts_header=True))
        daemon = Daemon(runtime, configuration(port, server.address, accept=True, send="v2"))
        stack.enter_context(daemon)
        front = stack.enter_context(in_front(runtime, kind, version, port))
        assert [ask(front.port) for _ in range(3)] == ["the client"] * 3
        assert ask(port) == ""  # without a header
        [service] = daemon.show("services")
        assert service["rejected"]["proxy_malformed"] == 1  # type: ignore[index]
