# SPDX-License-Identifier: Apache-2.0
"""The ``agent`` probe against agents that answer, wait to be asked, drip, babble, or are not there."""

from __future__ import annotations

import asyncio

import pytest

from fairlead.model.health import AgentReport, ProbeResult
from fairlead.model.pool import AdminState, AgentQuestion, MonitorType
from fairlead.model.reasons import DownReason
from fairlead.probes.registry import probe
from support.servers import Handler, reset, serving, silent, target_at


def saying(*pieces: bytes) -> Handler:
    """An agent that answers unasked, in pieces, and closes."""

    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    return handler


async def resetting(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def ask(handler: Handler, timeout_s: float = 5.0, send: bytes = b"") -> ProbeResult:
    async with serving(handler) as port:
        target = target_at(port, type=MonitorType.AGENT, timeout_s=timeout_s, agent=AgentQuestion(send))
        return await probe(target)


async def test_an_answer_is_told_and_shown() -> None:
    result = await ask(saying(b"up drain 75% maxconn:30\n"))
    assert result.report == AgentReport(75, AdminState.DRAIN, True, 30)
    assert (result.passed, result.detail) == (True, 'said "up drain 75% maxconn:30"')


async def test_pieces_and_a_closed_connection_end_the_line() -> None:
    result = await ask(saying(b"5", b"0", b"%"))
    assert result.report == AgentReport(share=50)


async def test_an_agent_that_wants_to_be_asked() -> None:
    async def shy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"30%\n" if await reader.readline() == b"web-1\n" else b"down\n")

    assert (await ask(shy, send=b"web-1\n")).report == AgentReport(share=30)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (silent, DownReason.TIMEOUT),
        (saying(), DownReason.MALFORMED),
        (resetting, DownReason.RESET),
        (saying(b"HTTP/1.1 400 Bad Request\r\n"), DownReason.MALFORMED),
        (saying(b"x" * 100_000), DownReason.MALFORMED),
    ],
)
async def test_no_answer_is_no_report(handler: Handler, reason: DownReason) -> None:
    result = await ask(handler, timeout_s=0.3)
    assert (result.passed, result.reason, result.report) == (False, reason, None)
