# SPDX-License-Identifier: Apache-2.0
"""The line of an agent: its words, their combinations, its pieces, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import MalformedPacket
from fairlead.model.health import AgentReport
from fairlead.model.pool import AdminState
from fairlead.protocols.agent_check import MAX_LINE, AgentLine, parse

LINES = [
    (b"75%\n", AgentReport(share=75)),
    (b"0%", AgentReport(share=0)),
    (b"weight:40%", AgentReport(share=40)),
    (b"250%", AgentReport(share=100)),
    (b"maxconn:30", AgentReport(max_connections=30)),
    (b"maxconn:0", AgentReport(max_connections=0)),
    (b"ready", AgentReport(admin=AdminState.READY)),
    (b"drain", AgentReport(admin=AdminState.DRAIN)),
    (b"maint", AgentReport(admin=AdminState.MAINT)),
    (b"up", AgentReport(up=True)),
    (b"down", AgentReport(up=False)),
    (b"fail", AgentReport(up=False)),
    (b"failed", AgentReport(up=False)),
    (b"stopped", AgentReport(up=False)),
    (b"down #disk, full\r\n", AgentReport(up=False, reason="disk, full")),
    (b"up ready 50% maxconn:10", AgentReport(50, AdminState.READY, True, 10)),
    (b"  UP,Drain\t10%,\r\n", AgentReport(10, AdminState.DRAIN, True)),
    (b"drain ready", AgentReport(admin=AdminState.READY)),
    (b"sleepy 20% load:0.3", AgentReport(share=20)),
    (b"down #\x1b[31m\xff", AgentReport(up=False, reason="?[31m\ufffd")),
]


@pytest.mark.parametrize(("line", "report"), LINES)
def test_a_line(line: bytes, report: AgentReport) -> None:
    assert parse(line.rstrip(b"\r\n")) == report
    assert AgentLine().receive_data(line.rstrip(b"\r\n") + b"\r\nup 3%") == report


@pytest.mark.parametrize("line", [b"", b"hello", b"75", b"-5%", b"maxconn:", b"maxconn: 30", b"#up", b"50 %", b"\xff"])
def test_what_is_no_answer(line: bytes) -> None:
    with pytest.raises(MalformedPacket, match="no word that is known"):
        parse(line)


@given(st.sampled_from(LINES), st.lists(st.integers(1, 5), max_size=20))
def test_pieces_make_the_same_line(row: tuple[bytes, AgentReport], sizes: list[int]) -> None:
    line, report = row
    collector = AgentLine()
    for size in sizes:
        piece, line = line[:size], line[size:]
        if piece and (found := collector.receive_data(piece)) is not None:
            assert found == report
            return
    found = collector.receive_data(line) if line else None
    assert (found or collector.receive_data(b"")) == report


def test_a_line_without_end_is_refused() -> None:
    collector = AgentLine()
    assert collector.receive_data(b"x" * MAX_LINE) is None
    with pytest.raises(MalformedPacket, match="more than 1024"):
        collector.receive_data(b"x")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_clear_error(data: bytes) -> None:
    try:
        report = AgentLine().receive_data(data + b"\n")
    except MalformedPacket:
        return
    assert report is not None
    assert report.share is None or 0 <= report.share <= 100
    assert report.reason.isprintable()
