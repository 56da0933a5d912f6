# SPDX-License-Identifier: Apache-2.0
"""Disturbed blocks: what disturbs one, how rounds go on without it, and how the report tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench import report
from bench import rounds as rounds_module
from bench.contenders import Contender, Place
from bench.machine import Cpus, moment, processes
from bench.net import report as net_report
from bench.net.report import AGAIN, CONNECTIONS, FEWEST, OURS
from bench.quiet import Moment, Process, Signs, signs, usual
from bench.report import disturbances, table
from bench.results import Block, Results
from bench.rounds import Schedule, Watch, rounds
from bench.rows import Failed, Starved, Tools
from support.wait import until

BENCH, SERVER, OTHER, SHELL = 100, 101, 500, 501
CPUS = Cpus(frozenset({min(os.sched_getaffinity(0))}), frozenset())
QUIET, LOUD = Signs(0.0, 0.0, 1.0), Signs(0.5, 0.0, 1.0)


def at(second: float, stolen: float = 0.0, spin: float = 1.0, **run: float) -> Moment:
    """A moment; the CPU time of ``bench``, ``server`` and ``other``, and what others' children had."""
    own, shell = Process(1, run.get("bench", 0.0), 0.0), Process(1, 0.0, run.get("ended", 0.0))
    found = {
        1: Process(0, 0.0, 0.0),
        BENCH: own,
        SERVER: Process(BENCH, run.get("server", 0.0), 0.0),
        SHELL: shell,
    }
    if "other" in run:
        found[OTHER] = Process(SHELL, run["other"], 0.0)
    return Moment(second, stolen, found, spin)


def reason(before: Moment, after: Moment, usual_spin_s: float = 1.0) -> str | None:
    return signs(before, after, BENCH, usual_spin_s).reason


def test_what_the_benchmark_does_disturbs_nobody() -> None:
    assert reason(at(0.0, other=3.0), at(1.0, other=3.0, bench=1.0, server=1.0)) is None


@pytest.mark.parametrize(("used", "expected"), [(0.019, None), (0.021, "foreign")])
def test_another_process_disturbs_with_more_than_two_hundredths_of_a_cpu(used: float, expected: str | None) -> None:
    assert reason(at(0.0, other=3.0), at(1.0, other=3.0 + used)) == expected
    assert reason(at(0.0, other=3.0), at(2.0, other=3.0 + 2 * used)) == expected


def test_a_process_that_came_meanwhile_disturbs_with_all_it_had() -> None:
    assert reason(at(0.0), at(1.0, other=0.5)) == "foreign"


def test_a_process_that_came_and_went_is_found_with_its_parent() -> None:
    assert reason(at(0.0), at(1.0, ended=0.5)) == "foreign"


def test_what_a_process_had_before_the_block_does_not_count_when_it_ends_in_it() -> None:
    assert reason(at(0.0, other=50.0), at(1.0, ended=50.01)) is None
    assert reason(at(0.0, other=50.0), at(1.0, ended=50.5)) == "foreign"


def test_a_process_whose_parent_does_not_wait_for_it_hides_nobody_when_it_ends() -> None:
    before, after = at(0.0, other=50.0), at(1.0)
    processes = {**after.processes, OTHER + 9: Process(1, 0.5, 0.0)}
    assert reason(before, replace(after, processes=processes)) == "foreign"


@pytest.mark.parametrize(("stolen", "expected"), [(0.02, None), (0.03, "steal")])
def test_stolen_time_disturbs(stolen: float, expected: str | None) -> None:
    assert reason(at(0.0, stolen=7.0), at(1.0, stolen=7.0 + stolen)) == expected


@pytest.mark.parametrize(("before", "after"), [(1.3, 1.0), (1.0, 1.3)])
def test_a_slow_cpu_disturbs_at_either_end(before: float, after: float) -> None:
    assert reason(at(0.0, spin=before), at(1.0, spin=after)) == "slow"
    assert reason(at(0.0, spin=before), at(1.0, spin=after), usual_spin_s=1.2) is None


def test_usual_is_what_the_fixed_work_takes_when_little_is_in_its_way() -> None:
    assert usual([9.0, 1.0, 8.0, 1.1, 1.2, 7.0, 6.0, 5.0]) == 1.2


class Scripted(Watch):
    """Tells what it is told to."""

    def __init__(self, seen: list[Signs]) -> None:
        self._seen = seen

    def signs(self) -> Signs:
        return self._seen.pop(0)


def contenders(*names: str) -> list[Contender]:
    place = Place("", 0, (), Path(), CPUS)
    return [Contender(name, place, None) for name in names]


def run(
    monkeypatch: pytest.MonkeyPatch,
    schedule: Schedule,
    names: str,
    seen: list[Signs],
    *,
    fails: str = "",
    failure: type[Failed] = Failed,
) -> tuple[Results, list[str]]:
    """Rounds of contenders with names of one letter, and who was measured when."""
    measured: list[str] = []
    results = Results({})
    monkeypatch.setattr(rounds_module, "Watch", lambda _: Scripted(seen))

    def measure(contender: Contender) -> dict[str, float]:
        measured.append(contender.name)
        if contender.name in fails:
            raise failure(contender.name)
        return {"row": 1.0}

    rounds(results, "what", contenders(*names), schedule, measure, cpus=CPUS)
    return results, measured


def test_a_disturbed_block_is_discarded_and_its_round_measured_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    results, measured = run(monkeypatch, Schedule(2, 9), "ab", [QUIET, LOUD, *[QUIET] * 4])
    assert len(measured) == 6
    assert sorted(map(len, results.rounds)) == [1, 2, 2]
    assert [block.contender for block in results.blocks if block.signs == LOUD] == [measured[1]]


def test_rounds_come_to_an_end_however_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    results, measured = run(monkeypatch, Schedule(2, 5), "ab", [LOUD] * 10)
    assert len(measured) == 10
    assert not any(results.rounds)


def test_a_failure_takes_its_own_signs_along(monkeypatch: pytest.MonkeyPatch) -> None:
    results, measured = run(monkeypatch, Schedule(1, 2), "ab", [QUIET] * 4, fails="a")
    assert len(results.failures) == 2
    assert [block.contender for block in results.blocks] == ["b", "b"]
    assert sorted(measured) == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("failure", "seen", "told"), [(Failed, LOUD, 1), (Starved, LOUD, 0), (Starved, QUIET, 1), (Failed, QUIET, 1)]
)
def test_a_block_that_was_starved_by_others_is_disturbed_and_not_failed(
    monkeypatch: pytest.MonkeyPatch, failure: type[Failed], seen: Signs, told: int
) -> None:
    results, _ = run(monkeypatch, Schedule(1, 1), "a", [seen], fails="a", failure=failure)
    assert len(results.failures) == told
    assert len(results.blocks) == 1 - told
    assert results.rounds == [{}]


def test_every_second_round_mirrors_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    _, measured = run(monkeypatch, Schedule(2, 2), "abcdefgh", [QUIET] * 16)
    assert measured[8:] == measured[7::-1]


def test_those_that_are_judged_are_next_to_each_other_and_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(8, 8, core=("a", "b", "c"), every=2)
    _, measured = run(monkeypatch, schedule, "abcdef", [QUIET] * 36)
    text = "".join(measured)
    sizes = [6, 6, 3, 3, 6, 6, 3, 3]
    for size in sizes:
        place = min(text.index(name) for name in "abc")
        assert set(text[place : place + 3]) == set("abc")
        text = text[size:]
    assert text == ""


def test_only_the_core_must_be_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.shuffle", lambda _: None)
    monkeypatch.setattr("random.randint", lambda *_: 0)
    results, measured = run(monkeypatch, Schedule(1, 9, core=("a", "b")), "abc", [QUIET, QUIET, LOUD])
    assert measured == ["a", "b", "c"]
    assert results.rounds == [{"a": {"row": 1.0}, "b": {"row": 1.0}}]


def connected(pairs: int, disturbed: int) -> Results:
    """So many rounds of new connections, and so many that were disturbed."""
    gathered = Results({})
    for number in range(pairs + disturbed):
        found = {}
        for name in (OURS, AGAIN, "direct"):
            block = Block("connections", number, name, {"conn_rate": 1.0}, QUIET if number < pairs else LOUD)
            if gathered.keep(block):
                found[name] = block.figures
        gathered.add(found)
    return gathered


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (0, "void: 0 undisturbed pairs"),
        (FEWEST - 1, f"void: {FEWEST - 1} undisturbed pairs"),
        (FEWEST, "even, bar 0.95 met"),
    ],
)
def test_a_row_of_which_too_little_is_left_is_void(pairs: int, expected: str) -> None:
    text = table(connected(pairs, disturbed=4), CONNECTIONS)
    assert next(line for line in text.splitlines() if line.startswith("B8 new")).endswith(expected)
    assert ("as a multiple of" in text) == (pairs > 0)


def test_what_is_counted_and_not_timed_needs_no_second_pair() -> None:
    gathered = Results({})
    figures = {name: {"idle_bytes": 9.0} for name in ("fairlead", "haproxy")}
    for name, found in figures.items():
        gathered.keep(Block("memory", 1, name, found, None))
    gathered.add(figures)
    assert "void" not in table(gathered, report.PROXIES)


def test_on_loopback_two_pairs_are_too_few() -> None:
    gathered = Results({})
    for number in range(2):
        figures = {name: {"conn_rate": 9.0} for name in ("fairlead", "haproxy")}
        for name, found in figures.items():
            gathered.keep(Block("connections", number, name, found, QUIET))
        gathered.add(figures)
    assert "void: 2 undisturbed pairs" in table(gathered, report.PROXIES)


def test_what_was_discarded_is_counted_with_its_reason_and_kept_in_the_samples() -> None:
    gathered = connected(3, disturbed=2)
    gathered.keep(Block("memory", 0, OURS, {"idle_bytes": 1.0}, None))
    (line, *meaning) = disturbances(gathered)
    assert line == "blocks discarded as disturbed: connections 6 of 15 (foreign 6)"
    assert "2% of a CPU" in meaning[0]
    discarded = gathered.document((CONNECTIONS,))["discarded"]
    assert len(discarded) == 6
    assert discarded[0]["reason"] == "foreign"
    assert discarded[0]["figures"] == {"conn_rate": 1.0}


@pytest.mark.parametrize("remarks", [report.remarks, net_report.remarks])
def test_both_reports_tell_what_was_discarded(remarks: Callable[[Results, Cpus], list[str]]) -> None:
    assert disturbances(connected(3, disturbed=2))[0] in remarks(connected(3, disturbed=2), CPUS)


@pytest.mark.system
@pytest.mark.parametrize(("errors", "expected"), [(0, Starved), (1, Failed)])
def test_a_load_that_got_nothing_done_was_starved_unless_it_met_errors(
    tmp_path: Path, errors: int, expected: type[Failed]
) -> None:
    load = tmp_path / "load"
    load.write_text(f'#!/bin/sh\necho \'{{"done": 0, "errors": {errors}}}\'\n')
    load.chmod(0o755)
    with pytest.raises(Failed) as raised:
        Tools(load, CPUS).run(contenders("a")[0], "connect")
    assert type(raised.value) is expected


def test_a_load_is_chosen_by_all_blocks() -> None:
    gathered = connected(0, disturbed=2)
    assert gathered.median(OURS, "conn_rate") == 0.0
    assert gathered.speed(OURS, "conn_rate") == 1.0


@pytest.mark.system
def test_the_kernel_tells_what_another_process_uses() -> None:
    before = moment(CPUS)
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as hog:
        try:
            until(lambda: (it := processes().get(hog.pid)) is not None and it.run_s > 0.1, 10, "it has used CPU time")
            after = moment(CPUS)
        finally:
            hog.kill()
    used_s = after.processes[hog.pid].run_s
    span_s = after.at_s - before.at_s
    assert 2 not in after.processes, "a thread of the kernel"
    everybody, others = (signs(before, after, bench, 1.0).foreign * span_s for bench in (0, os.getpid()))
    assert everybody > 0.1
    assert everybody - others >= used_s - 1e-6  # the benchmark's own process is not foreign to it
