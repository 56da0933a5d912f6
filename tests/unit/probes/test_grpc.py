# SPDX-License-Identifier: Apache-2.0
"""The ``grpc`` probe against a real gRPC server, plain, over TLS and behind nginx, and against others."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.model.pool import GrpcExpectation, MonitorType, TlsSettings
from fairlead.model.reasons import DownReason
from fairlead.probes.registry import probe
from support.processes import accepts, free_port
from support.servers import Handler, answering, closing, resetting, serving, silent, target_at
from support.wait import until
from unit.probes.conftest import Certificates


@contextlib.contextmanager
def grpc_server(*arguments: str) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("grpc_server.py")), *arguments], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def plain() -> Iterator[int]:
    with grpc_server() as port:
        yield port


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[int]:
    with grpc_server(str(certificates.good)) as port:
        yield port


@pytest.fixture(scope="module")
def behind_nginx(plain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Nginx in front of the plain server: its HPACK compresses, and it answers 502 and 404 by itself."""
    directory = tmp_path_factory.mktemp("nginx")
    port = free_port()
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi"))
    temporary += f" uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;"
    (directory / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log; events {{}}"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port} http2; server_name good.test;"
        f"location / {{ grpc_pass grpc://127.0.0.1:{plain}; }} }}"
        f"server {{ listen 127.0.0.1:{port} http2; server_name missing.test; return 404; }} }}"
    )
    process = subprocess.Popen(
        ["nginx", "-c", str(directory / "nginx.conf"), "-p", str(directory)], stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: accepts("127.0.0.1", port), 10, "nginx accepts")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=[False, True], ids=["plain", "behind nginx"])
def port(request: pytest.FixtureRequest, plain: int, behind_nginx: int) -> int:
    return behind_nginx if request.param else plain


async def settling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends settings without end."""
    while True:
        writer.write(b"\0\0\0\4\0\0\0\0\0" * 1000)
        await writer.drain()
        await reader.read(65536)


async def test_a_serving_server_passes(port: int) -> None:
    result = await probe(target_at(port, type=MonitorType.GRPC, timeout_s=5.0))
    assert (result.passed, result.detail) == (True, "SERVING")


async def test_the_service_is_asked_about(port: int) -> None:
    sick = await probe(target_at(port, type=MonitorType.GRPC, timeout_s=5.0, grpc=GrpcExpectation("sick")))
    assert (sick.reason, sick.detail) == (DownReason.BAD_STATUS, "NOT_SERVING")
    unknown = await probe(target_at(port, type=MonitorType.GRPC, timeout_s=5.0, grpc=GrpcExpectation("unknown")))
    assert unknown.reason is DownReason.BAD_STATUS
    assert unknown.detail.startswith("gRPC status 5 NOT_FOUND")


async def test_an_http_status_is_told(behind_nginx: int) -> None:
    expected = GrpcExpectation(authority="missing.test")
    result = await probe(target_at(behind_nginx, type=MonitorType.GRPC, timeout_s=5.0, grpc=expected))
    assert (result.reason, result.detail) == (DownReason.BAD_STATUS, "HTTP status 404")


async def test_tls(secure: int, certificates: Certificates) -> None:
    trusting = await probe(target_at(secure, type=MonitorType.GRPC, timeout_s=5.0, tls=TlsSettings()))
    assert (trusting.passed, trusting.detail) == (True, "SERVING")
    verifying = TlsSettings(verify=True, ca_file=str(certificates.authority))
    named = GrpcExpectation(authority="good.test")
    assert (await probe(target_at(secure, type=MonitorType.GRPC, timeout_s=5.0, tls=verifying, grpc=named))).passed
    stranger = GrpcExpectation(authority="stranger.test")
    result = await probe(target_at(secure, type=MonitorType.GRPC, timeout_s=5.0, tls=verifying, grpc=stranger))
    assert result.reason is DownReason.CERTIFICATE


@pytest.mark.parametrize(
    ("handler", "reason", "detail"),
    [
        (closing, DownReason.CLOSED, "gRPC answer: the server closed the connection before it"),
        (resetting, DownReason.RESET, "gRPC answer: connection reset by peer"),
        (silent, DownReason.TIMEOUT, "gRPC answer took longer than 0.3 s"),
        (answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), DownReason.MALFORMED, "gRPC answer: not HTTP/2"),
        (settling, DownReason.TOO_LARGE, "gRPC answer: the server sends without end"),
    ],
    ids=["close", "reset", "silent", "http/1.1", "endless settings"],
)
async def test_bad_servers(handler: Handler, reason: DownReason, detail: str) -> None:
    async with serving(handler) as port:
        timeout_s = 0.3 if reason is DownReason.TIMEOUT else 5.0
        result = await probe(target_at(port, type=MonitorType.GRPC, timeout_s=timeout_s))
    assert (result.passed, result.reason, result.detail) == (False, reason, detail)
