# SPDX-License-Identifier: Apache-2.0
"""Probes that begin with a PROXY protocol header, before TLS and before HTTP."""

from __future__ import annotations

import asyncio

import pytest

from fairlead.model.pool import MonitorType
from fairlead.model.service import ProxyHeader
from fairlead.probes.registry import probe
from fairlead.protocols.proxy_header import version_2_local
from support.servers import serving, target_at

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", [MonitorType.TCP, MonitorType.HTTP])
@pytest.mark.parametrize("version", [ProxyHeader.V1, ProxyHeader.V2])
async def test_the_header_comes_first(kind: MonitorType, version: ProxyHeader, host: str) -> None:
    seen: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near, far = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
        family = "TCP6" if ":" in host else "TCP4"
        expected = f"PROXY {family} {far[0]} {near[0]} {far[1]} {near[1]}\r\n".encode()
        if version is ProxyHeader.V2:
            expected = version_2_local()
        await seen.put((await reader.readexactly(len(expected)), expected))
        if kind is MonitorType.HTTP:
            assert (await reader.readline()).startswith(b"GET / HTTP/1.1")
            writer.write(OK)
        await reader.read()

    async with serving(server, host) as port:
        result = await probe(target_at(port, host, type=kind, timeout_s=5.0, send_proxy=version))
        got, expected = await asyncio.wait_for(seen.get(), 5)
    assert result.passed, result
    assert got == expected
