# SPDX-License-Identifier: Apache-2.0
"""The tables of the rows between namespaces, which rows are left out, and what several tables share."""

from __future__ import annotations

import os

import pytest

from bench.machine import Cpus
from bench.net.report import AGAIN, CONNECTED, CONNECTIONS, FORWARDING, FRAMES, LAYOUTS, NAMES, OURS, remarks
from bench.report import table
from bench.results import Results
from bench.run import left_out

CPUS = Cpus(frozenset({0}), frozenset({1}))


def results(row: str, **series: float) -> Results:
    """One row, the same in four rounds."""
    gathered = Results({"kernel": "test"})
    for _ in range(4):
        gathered.add({name.replace("_", "-"): {row: value} for name, value in series.items()})
    return gathered


def line(text: str, label: str) -> str:
    """The first line of a table that begins so."""
    return next(it for it in text.splitlines() if it.startswith(label))


@pytest.mark.parametrize(("ours", "verdict"), [(95.0, "loss, bar 0.95 met"), (94.0, "loss, bar 0.95 MISSED")])
def test_connections_are_judged_by_the_direct_ones(ours: float, verdict: str) -> None:
    text = table(results("conn_rate", xdp_nat=ours, direct=100.0, nft=50.0), CONNECTIONS)
    assert line(text, "B8 new connections").endswith(verdict)


@pytest.mark.parametrize(("ours", "verdict"), [(110.0, "loss, bar 1.1 met"), (111.0, "loss, bar 1.1 MISSED")])
def test_latency_may_be_a_tenth_over_the_direct_one(ours: float, verdict: str) -> None:
    text = table(results("p99_us", xdp_nat=ours, direct=100.0), CONNECTIONS)
    assert line(text, "B9 latency p99").endswith(verdict)


@pytest.mark.parametrize(("ours", "verdict"), [(333.0, "win, bar 0.333 met"), (340.0, "win, bar 0.333 MISSED")])
def test_a_frame_may_cost_a_third_of_what_it_costs_nft(ours: float, verdict: str) -> None:
    text = table(results("few_ns", xdp_nat=ours, nft=1000.0), FRAMES)
    assert line(text, "B7 CPU per frame").endswith(verdict)


def test_the_ratio_to_each_of_the_others_is_printed_also_where_it_is_lost() -> None:
    text = table(results("conn_rate", xdp_nat=80.0, direct=100.0, haproxy=40.0, nginx=160.0), CONNECTIONS)
    ratios = text.partition("as a multiple of")[2]
    assert line(ratios, "B8 new connections").split()[3:] == [
        "-", "-", "2.00", "(2.00-2.00)", "0.50", "(0.50-0.50)", "-", "0.80", "(0.80-0.80)", "-",
    ]  # fmt: skip


def test_a_control_that_differs_makes_a_row_void() -> None:
    text = table(results("conn_rate", xdp_nat=100.0, xdp_nat_again=104.0, direct=100.0), CONNECTIONS)
    assert "0.96 void" in line(text, "B8 new connections")
    text = table(results("conn_rate", xdp_nat=100.0, xdp_nat_again=102.0, direct=100.0), CONNECTIONS)
    assert "void" not in line(text, "B8 new connections")


def test_a_table_without_figures_is_not_printed() -> None:
    assert table(results("conn_rate", xdp_nat=1.0), FRAMES) == ""


def test_every_contender_has_a_column_and_rows_have_one_name_each() -> None:
    assert set(NAMES) == {*CONNECTED, *FORWARDING, AGAIN}
    assert {OURS, "nft", "haproxy", "nginx", "fairlead", "direct", "back-to-back"} <= set(CONNECTED)
    assert {OURS, "nft", "direct", "floor"} <= set(FORWARDING)
    names = [row.name for layout in LAYOUTS for row in layout.rows]
    assert len(names) == len(set(names))


def test_remarks_tell_the_offloads_the_steal_and_what_failed() -> None:
    gathered = results("conn_rate", xdp_nat=1.0)
    gathered.failures.append("frames, round 1: nft: 3 lost")
    text = "\n".join(remarks(gathered, CPUS))
    assert "TSO, GSO and GRO are off" in text
    assert "failed: frames, round 1: nft: 3 lost" in text


def test_who_is_not_root_is_told_which_rows_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert left_out(["proxies", "B7", "B9"]) == ["B7", "B9"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert left_out(["proxies", "B7", "B9"]) == []
