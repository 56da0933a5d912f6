# SPDX-License-Identifier: Apache-2.0
"""The ``http`` probe against servers that answer well, badly, slowly, hugely or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from ipaddress import ip_address

import h11
import pytest

from fairlead import __version__
from fairlead.model.health import ProbeResult
from fairlead.model.pool import HttpExpectation, MonitorType
from fairlead.model.reasons import DownReason
from fairlead.probes.registry import probe
from support.servers import Handler, answering, closing, reset, resetting, serving, silent, target_at

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def ask(handler: Handler, expected: HttpExpectation | None = None, timeout_s: float = 2.0) -> ProbeResult:
    async with serving(handler) as port:
        return await probe(target_at(port, type=MonitorType.HTTP, timeout_s=timeout_s, http=expected))


async def test_an_answer_with_an_expected_status_passes() -> None:
    result = await ask(answering(OK))
    assert (result.passed, result.reason, result.detail) == (True, None, "HTTP 200 OK")


async def test_the_request_is_what_the_monitor_says() -> None:
    heads: asyncio.Queue[bytes] = asyncio.Queue()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.put_nowait(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)

    async with serving(note) as port:
        await probe(target_at(port, type=MonitorType.HTTP))
        line, headers = _parsed(await heads.get())
        assert line == b"GET / HTTP/1.1"
        assert headers == {
            b"host": f"127.0.0.1:{port}".encode(),
            b"user-agent": f"fairlead/{__version__}".encode(),
            b"accept": b"*/*",
            b"connection": b"close",
        }
        custom = HttpExpectation(
            "OPTIONS", "/live?deep=1", "www.example.org", (("X-Probe", "yes"), ("user-agent", "other"))
        )
        await probe(target_at(port, type=MonitorType.HTTP, http=custom))
        line, headers = _parsed(head := await heads.get())
        assert head.lower().count(b"user-agent:") == 1
        assert line == b"OPTIONS /live?deep=1 HTTP/1.1"
        assert headers[b"host"] == b"www.example.org"
        assert headers[b"x-probe"] == b"yes"
        assert headers[b"user-agent"] == b"other"


async def test_host_of_an_ipv6_server_is_bracketed() -> None:
    heads: asyncio.Queue[bytes] = asyncio.Queue()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.put_nowait(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)

    async with serving(note, "::1") as port:
        assert (await probe(target_at(port, "::1", type=MonitorType.HTTP))).passed
        assert _parsed(await heads.get())[1][b"host"] == f"[::1]:{port}".encode()


def _parsed(head: bytes) -> tuple[bytes, Mapping[bytes, bytes]]:
    line, *rest = head.strip().split(b"\r\n")
    return line, {name.lower(): value for name, _, value in (entry.partition(b": ") for entry in rest)}


@pytest.mark.parametrize(
    ("expected", "detail"),
    [
        (HttpExpectation(method="GET\r\nX: y"), "the request cannot be sent"),
        (HttpExpectation(path="/a b"), "the request cannot be sent"),
        (HttpExpectation(headers=(("X", "a\r\nY: b"),)), "the request cannot be sent"),
    ],
)
async def test_a_request_that_cannot_be_sent_is_an_error_of_this_node(expected: HttpExpectation, detail: str) -> None:
    result = await ask(answering(OK), expected)
    assert result.reason is DownReason.LOCAL_ERROR
    assert result.detail.startswith(detail)


@pytest.mark.parametrize(
    ("status", "statuses", "passes"),
    [
        (200, ((200, 399),), True),
        (399, ((200, 399),), True),
        (400, ((200, 399),), False),
        (199, ((200, 399),), False),
        (503, ((200, 399),), False),
        (404, ((200, 299), (404, 404)), True),
        (204, ((200, 200),), False),
        (999, ((200, 399),), False),
    ],
)
async def test_status_ranges_are_inclusive(status: int, statuses: tuple[tuple[int, int], ...], passes: bool) -> None:
    if status == 199:  # an interim answer: the final one decides
        handler = answering(b"HTTP/1.1 199 Wait\r\n\r\nHTTP/1.1 500 Sorry\r\n\r\n")
    else:
        handler = answering(f"HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n".encode())
    result = await ask(handler, HttpExpectation(statuses=statuses))
    assert result.passed is passes
    assert result.reason is (None if passes else DownReason.BAD_STATUS)


async def test_a_bad_status_says_what_came_and_what_was_expected() -> None:
    expected = HttpExpectation(statuses=((200, 299), (404, 404)))
    result = await ask(answering(b"HTTP/1.1 503 Out of tea\r\n\r\n"), expected)
    assert result.detail == "HTTP 503 Out of tea, expected 200-299, 404"
    result = await ask(answering(b"HTTP/1.1 503 Out of\t\xe2\x80\xaetea" + b"!" * 99 + b"\r\n\r\n"), expected)
    assert result.reason is DownReason.BAD_STATUS
    assert result.detail == "HTTP 503 Out of\\t\\u202etea!!!!!!!!!!!!!!!!!!!!..., expected 200-299, 404"


async def test_a_server_of_another_protocol_is_known_at_once() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await asyncio.Event().wait()

    result = await ask(greet, timeout_s=30)
    assert result.detail == 'HTTP answer: not valid HTTP/1.1, begins "220 mail.example.org ESMTP"'


async def test_interim_answers_are_skipped() -> None:
    assert (await ask(answering(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", OK))).passed


async def test_http_1_0_and_an_answer_without_length_pass() -> None:
    assert (await ask(answering(b"HTTP/1.0 200 OK\r\n\r\nhello"), HttpExpectation(body="hello"))).passed


async def test_without_body_the_head_decides() -> None:
    """The rest may be slow, huge or cut off: the server has said that it is well."""

    async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    assert (await ask(forever)).passed


@pytest.mark.parametrize(
    "answer",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nall is well\r\n",),
        (CHUNKED, b"6\r\nall is\r\n", b"5\r\n well\r\n0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"all ", b"is ", b"well"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n", b"." * 65525, b"all is well"),
    ],
)
async def test_the_body_is_searched_across_pieces(answer: tuple[bytes, ...]) -> None:
    assert (await ask(answering(*answer, pause_s=0.01), HttpExpectation(body="all is well"))).passed


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        CHUNKED + b"3\r\nall\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65530 + b"all is well",  # ends beyond the first 64 kB
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"x" * 70000,
    ],
)
async def test_a_body_without_the_text_fails(answer: bytes) -> None:
    result = await ask(answering(answer), HttpExpectation(body="all is well"))
    assert result.reason is DownReason.BAD_BODY
    assert result.detail.endswith(', but "all is well" is not in the first 64 kB')


async def test_head_has_no_body() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    assert (await ask(answering(answer), HttpExpectation(method="HEAD"))).passed
    result = await ask(answering(answer), HttpExpectation(method="HEAD", body="x"))
    assert result.reason is DownReason.BAD_BODY


@pytest.mark.parametrize(
    ("handler", "reason", "detail"),
    [
        (closing, DownReason.CLOSED, "HTTP answer: the server closed the connection before it"),
        (
            answering(b"HTTP/1.1 200 OK\r\nContent-"),
            DownReason.CLOSED,
            "HTTP answer: the server closed the connection in the middle of it",
        ),
        (resetting, DownReason.RESET, "HTTP answer: connection reset by peer"),
        (silent, DownReason.TIMEOUT, "HTTP answer took longer than 0.3 s"),
        (answering(*[bytes([b]) for b in OK], pause_s=0.05), DownReason.TIMEOUT, "HTTP answer took longer than 0.3 s"),
        (
            answering(b"SSH-2.0-OpenSSH_9.2p1\r\n"),
            DownReason.MALFORMED,
            'HTTP answer: not valid HTTP/1.1, begins "SSH-2.0-OpenSSH_9.2p1"',
        ),
        (
            answering(b"\x16\x03\x01\x00\x02\x02\x28\r\n\r\n"),
            DownReason.MALFORMED,
            'HTTP answer: not valid HTTP/1.1, begins "\\x16\\x03\\x01\\x00\\x02\\x02("',
        ),
        (
            answering(b"HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n"),
            DownReason.MALFORMED,
            'HTTP answer: not valid HTTP/1.1, begins "HTTP/1.1 200 OK"',
        ),
        (
            answering(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
            DownReason.MALFORMED,
            'HTTP answer: not valid HTTP/1.1, begins "HTTP/1.1 101 Switching Protocols"',
        ),
        (
            answering(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n"),
            DownReason.TOO_LARGE,
            "HTTP answer: over 64 kB and still not complete",
        ),
        (
            answering(b"HTTP/1.1 100 Continue\r\n\r\n" * 8000),
            DownReason.TOO_LARGE,
            "HTTP answer: over 64 kB and still not complete",
        ),
    ],
    ids=["close", "cut", "reset", "silent", "drip", "ssh", "tls", "header", "upgrade", "huge head", "endless 100"],
)
async def test_bad_servers(handler: Handler, reason: DownReason, detail: str) -> None:
    result = await ask(handler, timeout_s=0.3 if reason is DownReason.TIMEOUT else 5.0)
    assert (result.passed, result.reason, result.detail) == (False, reason, detail)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall",), DownReason.CLOSED),
        ((CHUNKED, b"3\r\nall\r\n"), DownReason.CLOSED),
        ((CHUNKED, b"zz\r\n"), DownReason.MALFORMED),
        ((CHUNKED, b"1;" + b"x" * 200000), DownReason.TOO_LARGE),
        ((CHUNKED, b"1\r\nx\r\n" * 50000), DownReason.TOO_LARGE),
    ],
    ids=["cut", "cut chunks", "bad chunk", "huge chunk head", "tiny chunks"],
)
async def test_bad_bodies(pieces: tuple[bytes, ...], reason: DownReason) -> None:
    result = await ask(answering(*pieces), HttpExpectation(body="all is well"), timeout_s=5.0)
    assert result.reason is reason, result


async def test_a_drip_within_the_body_ends_at_the_deadline() -> None:
    started = time.monotonic()
    result = await ask(
        answering(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 100, pause_s=0.05), HttpExpectation(body="y"), timeout_s=0.3
    )
    assert result.reason is DownReason.TIMEOUT
    assert time.monotonic() - started < 4  # all of it takes five seconds


async def test_a_reset_after_the_answer_does_no_harm() -> None:
    async def answer_and_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.sleep(0.05)
        reset(writer)

    assert (await ask(answer_and_reset)).passed


async def test_source_and_port_hold_for_http_too() -> None:
    async def whence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + writer.get_extra_info("peername")[0].encode())
        await writer.drain()
        writer.close()

    async with serving(whence) as port:
        target = target_at(
            1, type=MonitorType.HTTP, port=port, source=ip_address("127.0.0.8"), http=HttpExpectation(body="127.0.0.8")
        )
        result = await probe(target)
    assert result.passed, result


async def test_a_bug_in_the_parser_is_an_error_of_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("parser\nbug")

    monkeypatch.setattr(h11.Connection, "next_event", broken)
    result = await ask(answering(OK))
    assert (result.reason, result.detail) == (DownReason.LOCAL_ERROR, "this node: ZeroDivisionError: parser\\nbug")
