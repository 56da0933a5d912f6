# SPDX-License-Identifier: Apache-2.0
"""Whatever a server sends, however it cuts it and ends it: a result in time, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.model.health import ProbeResult
from fairlead.model.pool import HttpExpectation, MonitorType
from fairlead.probes.registry import probe
from support.servers import descriptors, reset, serving, target_at

TIMEOUT_S = 0.05
SLACK_S = 10.0  # a busy machine

WORDS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 500 \r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n",
        b"HTTP/9.9 ",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Connection: keep-alive\r\n",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"ffffffffffffffffffff\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b" folded\r\n",
        b"x" * 70000,
        b"a: b\r\n" * 3000,
        b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x16\x03\x01\xff\xff",
        b"\x80\x2e\x01\x00\x02",
        b"\x00" * 5000,
        b"\0\0\0\4\0\0\0\0\0",
        b"\0\0\5\1\5\0\0\0\1\x88\0\1a\0",
    ]
)


@dataclass(frozen=True)
class Hostility:
    """What a server does."""

    pieces: list[bytes]
    reads_first: bool
    end: str  # "close" | "reset" | "hang" | "shut"


HOSTILITY = st.builds(
    Hostility,
    st.lists(WORDS | st.binary(max_size=60), max_size=8),
    st.booleans(),
    st.sampled_from(["close", "reset", "hang", "shut"]),
)


async def meet(kind: MonitorType, hostility: Hostility) -> tuple[ProbeResult, float]:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if hostility.reads_first:
            await reader.read(65536)
        for piece in hostility.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        match hostility.end:
            case "reset":
                reset(writer)
            case "hang":
                await asyncio.Event().wait()
            case "shut":
                writer.write_eof()
                await asyncio.Event().wait()

    async with serving(handler) as port:
        started = time.monotonic()
        expected = HttpExpectation(body="well") if kind is not MonitorType.TCP else None
        result = await probe(target_at(port, type=kind, timeout_s=TIMEOUT_S, http=expected))
        took_s = time.monotonic() - started
    return result, took_s


@pytest.mark.parametrize(
    "kind", [MonitorType.TCP, MonitorType.TLS, MonitorType.HTTP, MonitorType.HTTPS, MonitorType.GRPC, MonitorType.AGENT]
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostility=HOSTILITY)
def test_f49_always_a_result_in_time_and_nothing_left(kind: MonitorType, hostility: Hostility) -> None:
    async def main() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        before = descriptors()
        result, took_s = await meet(kind, hostility)
        assert took_s < TIMEOUT_S + SLACK_S
        assert (result.reason is None) is result.passed
        assert result.detail
        assert result.detail.isprintable()
        assert len(result.detail) < 200
        assert not result.detail.startswith("this node"), "an exception of a parser was not foreseen"
        assert descriptors() <= before
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect(0)
        assert not complaints

    asyncio.run(main())
