# SPDX-License-Identifier: Apache-2.0
"""The ``tls`` and ``https`` probes against real TLS, no TLS, and certificates good and bad."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from fairlead.model.pool import HttpExpectation, MonitorType, TlsSettings
from fairlead.model.reasons import DownReason
from fairlead.probes.registry import probe
from support.servers import Handler, answering, closing, resetting, serving, silent, target_at
from unit.probes.conftest import Certificates

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


def server_context(certificate: Path, names: list[str | None] | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if names is not None:
        context.sni_callback = lambda _, name, __: names.append(name)
    return context


async def test_a_handshake_passes_whoever_it_is(certificates: Certificates) -> None:
    async with serving(silent, tls=server_context(certificates.stranger)) as port:
        result = await probe(target_at(port, type=MonitorType.TLS, timeout_s=5.0))
    assert (result.passed, result.detail) == (True, "TLSv1.3")


async def test_older_servers_pass_too(certificates: Certificates) -> None:
    context = server_context(certificates.good)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(silent, tls=context) as port:
        result = await probe(target_at(port, type=MonitorType.TLS, timeout_s=5.0))
    assert (result.passed, result.detail) == (True, "TLSv1.2")


async def test_weak_ciphers_are_no_sign_of_death(certificates: Certificates) -> None:
    context = server_context(certificates.good)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    async with serving(silent, tls=context) as port:
        assert (await probe(target_at(port, type=MonitorType.TLS, timeout_s=5.0))).passed


@pytest.mark.parametrize("name", ["good.test", None], ids=["name", "address"])
async def test_a_verified_certificate_passes(certificates: Certificates, name: str | None) -> None:
    settings = TlsSettings(verify=True, ca_file=str(certificates.authority), server_name=name)
    async with serving(silent, tls=server_context(certificates.good)) as port:
        result = await probe(target_at(port, type=MonitorType.TLS, timeout_s=5.0, tls=settings))
    assert result.passed, result


@pytest.mark.parametrize(
    ("stranger", "name", "detail"),
    [
        (True, "good.test", "certificate: self-signed certificate"),
        (False, "bad.test", "certificate: Hostname mismatch, certificate is not valid for 'bad.test'"),
    ],
)
async def test_a_bad_certificate_fails(certificates: Certificates, stranger: bool, name: str, detail: str) -> None:
    settings = TlsSettings(verify=True, ca_file=str(certificates.authority), server_name=name)
    certificate = certificates.stranger if stranger else certificates.good
    async with serving(silent, tls=server_context(certificate)) as port:
        result = await probe(target_at(port, type=MonitorType.TLS, timeout_s=5.0, tls=settings))
    assert (result.reason, result.detail) == (DownReason.CERTIFICATE, detail)


async def test_the_systems_authorities_count_without_a_ca_file(certificates: Certificates) -> None:
    async with serving(silent, tls=server_context(certificates.good)) as port:
        result = await probe(target_at(port, type=MonitorType.TLS, timeout_s=5.0, tls=TlsSettings(verify=True)))
    assert result.reason is DownReason.CERTIFICATE


async def test_an_unusable_ca_file_is_an_error_of_this_node(tmp_path: Path) -> None:
    missing = TlsSettings(verify=True, ca_file=str(tmp_path / "missing.pem"))
    result = await probe(target_at(1, type=MonitorType.TLS, tls=missing))
    assert result.reason is DownReason.LOCAL_ERROR
    assert result.detail == f"this node: ca_file {missing.ca_file}: No such file or directory"
    (tmp_path / "empty.pem").touch()
    result = await probe(
        target_at(1, type=MonitorType.HTTPS, tls=TlsSettings(verify=True, ca_file=str(tmp_path / "empty.pem")))
    )
    assert result.reason is DownReason.LOCAL_ERROR


async def test_a_renewed_ca_file_is_read_again(certificates: Certificates, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(certificates.stranger.read_bytes())
    settings = TlsSettings(verify=True, ca_file=str(file), server_name="good.test")
    async with serving(silent, tls=server_context(certificates.good)) as port:
        target = target_at(port, type=MonitorType.TLS, timeout_s=5.0, tls=settings)
        assert (await probe(target)).reason is DownReason.CERTIFICATE
        renewed = tmp_path / "renewed.pem"
        renewed.write_bytes(certificates.authority.read_bytes())
        renewed.replace(file)
        assert (await probe(target)).passed


@pytest.mark.parametrize(
    ("settings", "http", "sni"),
    [
        (TlsSettings(server_name="good.test"), None, "good.test"),
        (None, HttpExpectation(host="www.test:8443"), "www.test"),
        (TlsSettings(server_name="good.test"), HttpExpectation(host="www.test"), "good.test"),
        (None, HttpExpectation(host="[::1]:443"), None),
        (None, None, None),
    ],
)
async def test_the_server_name_is_asked_for(
    certificates: Certificates, settings: TlsSettings | None, http: HttpExpectation | None, sni: str | None
) -> None:
    names: list[str | None] = []
    async with serving(answering(OK), tls=server_context(certificates.good, names)) as port:
        result = await probe(target_at(port, type=MonitorType.HTTPS, timeout_s=5.0, tls=settings, http=http))
    assert result.passed, result
    assert names == [sni]


async def test_https_reads_status_and_body(certificates: Certificates) -> None:
    async with serving(answering(OK[:20], OK[20:], pause_s=0.02), tls=server_context(certificates.good)) as port:
        good = await probe(target_at(port, type=MonitorType.HTTPS, timeout_s=5.0, http=HttpExpectation(body="ok")))
        bad = await probe(target_at(port, type=MonitorType.HTTPS, timeout_s=5.0, http=HttpExpectation(body="no")))
        status = HttpExpectation(statuses=((204, 204),))
        worse = await probe(target_at(port, type=MonitorType.HTTPS, timeout_s=5.0, http=status))
    assert (good.passed, good.detail) == (True, "HTTP 200 OK")
    assert bad.reason is DownReason.BAD_BODY
    assert worse.reason is DownReason.BAD_STATUS


async def test_https_speaks_http_1_1_to_a_server_that_prefers_http_2(certificates: Certificates) -> None:
    agreed: list[str | None] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        agreed.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await answering(OK)(reader, writer)

    async with serving(note, tls=server_context(certificates.good)) as port:
        assert (await probe(target_at(port, type=MonitorType.HTTPS, timeout_s=5.0))).passed
    assert agreed == ["http/1.1"]


@pytest.mark.parametrize("kind", [MonitorType.TLS, MonitorType.HTTPS])
@pytest.mark.parametrize(
    ("handler", "reason", "detail"),
    [
        (closing, DownReason.CLOSED, "TLS handshake: the server closed the connection"),
        (resetting, DownReason.RESET, "TLS handshake: connection reset by peer"),
        (silent, DownReason.TIMEOUT, "TLS handshake took longer than 0.3 s"),
    ],
    ids=["close", "reset", "silent"],
)
async def test_bad_servers(kind: MonitorType, handler: Handler, reason: DownReason, detail: str) -> None:
    async with serving(handler) as port:
        timeout_s = 0.3 if reason is DownReason.TIMEOUT else 5.0
        result = await probe(target_at(port, type=kind, timeout_s=timeout_s))
    assert (result.passed, result.reason, result.detail) == (False, reason, detail)


async def test_a_server_without_tls_fails() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await asyncio.sleep(5)

    async with serving(plain) as port:
        result = await probe(target_at(port, type=MonitorType.TLS, timeout_s=5.0))
    assert (result.reason, result.detail) == (DownReason.TLS_FAILED, "TLS: wrong version number")


async def test_a_server_that_sends_without_end_is_cut_off() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        while True:  # handshake records of a message that never ends
            writer.write(b"\x16\x03\x03\x40\x00" + b"\x0b\xff\xff\xff" + b"\x00" * 16380)
            await writer.drain()

    async with serving(flood) as port:
        result = await probe(target_at(port, type=MonitorType.TLS, timeout_s=5.0))
    assert result.reason in (DownReason.TLS_FAILED, DownReason.TOO_LARGE)


@pytest.mark.parametrize("politely", [True, False])
async def test_https_answer_cut_off_with_and_without_close_notify(certificates: Certificates, politely: bool) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK[:20])
        await writer.drain()
        if politely:
            writer.close()
        else:
            writer.transport.abort()

    async with serving(cut, tls=server_context(certificates.good)) as port:
        result = await probe(target_at(port, type=MonitorType.HTTPS, timeout_s=5.0))
    assert (result.reason, result.detail[-16:]) == (DownReason.CLOSED, "in the middle of it"[-16:]), result


async def test_the_end_of_the_certificate_is_told_also_when_nobody_verifies(certificates: Certificates) -> None:
    for kind, handler in ((MonitorType.TLS, silent), (MonitorType.HTTPS, answering(OK))):
        async with serving(handler, tls=server_context(certificates.stranger)) as port:
            result = await probe(target_at(port, type=kind, timeout_s=5.0))
        assert result.certificate_until is not None
        assert 29 * 86400 < result.certificate_until - time.time() <= 30 * 86400


async def test_a_server_that_wants_a_certificate_gets_ours(certificates: Certificates) -> None:
    context = server_context(certificates.good)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates.authority)
    key = certificates.good.with_suffix(".key")
    alone = certificates.good.parent / "alone.pem"
    alone.write_text("-----BEGIN CERT" + certificates.good.read_text().partition("-----BEGIN CERT")[2])
    async with serving(answering(OK), tls=context) as port:
        for settings, passes in (
            (TlsSettings(), False),
            (TlsSettings(certificate=str(certificates.stranger)), False),
            (TlsSettings(certificate=str(certificates.good)), True),
            (TlsSettings(certificate=str(alone), key=str(key)), True),
        ):
            result = await probe(target_at(port, type=MonitorType.HTTPS, timeout_s=5.0, tls=settings))
            assert result.passed is passes, result


async def test_an_unusable_certificate_of_ours_is_an_error_of_this_node(
    certificates: Certificates, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.pem"
    key = certificates.good.with_suffix(".key")
    command = ["openssl", "ec", "-in", str(key), "-aes128", "-passout", "pass:secret", "-out", str(locked)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    for settings, said in (
        (TlsSettings(certificate="/nowhere"), "certificate /nowhere: No such file"),
        (TlsSettings(certificate=str(certificates.good), key="/nowhere"), "certificate_key /nowhere: No such file"),
        (TlsSettings(certificate=str(certificates.good), key=str(locked)), f"certificate {certificates.good}: "),
    ):
        result = await probe(target_at(1, type=MonitorType.TLS, tls=settings))
        assert result.reason is DownReason.LOCAL_ERROR
        assert result.detail.startswith(f"this node: {said}")
