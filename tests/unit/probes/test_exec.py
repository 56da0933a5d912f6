# SPDX-License-Identifier: Apache-2.0
"""The ``exec`` probe with programs that end well, badly, late, loudly, or leave children."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from fairlead.model.health import ProbeResult
from fairlead.model.pool import ExecCommand, MonitorType
from fairlead.model.reasons import DownReason
from fairlead.probes.registry import probe
from support.servers import descriptors, target_at
from support.wait import until_later


async def run(*argv: str, timeout_s: float = 10.0) -> ProbeResult:
    return await probe(target_at(8080, type=MonitorType.EXEC, timeout_s=timeout_s, exec=ExecCommand(argv)))


def dead(pid: int) -> bool:
    """Whether the process has ended; whoever adopted it may not have reaped it yet."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def number_in(file: Path) -> int:
    return int(file.read_text())


async def ended(file: Path) -> None:
    pid = number_in(file)
    await until_later(lambda: dead(pid), 10, f"process {pid} ends")


async def reaped(file: Path, before: set[str]) -> None:
    pid = number_in(file)
    await until_later(lambda: not Path(f"/proc/{pid}").exists(), 10, f"process {pid} is reaped")
    await until_later(lambda: descriptors() <= before, 10, "its descriptors are closed")


async def test_status_zero_passes_with_the_first_line_it_says() -> None:
    result = await run("sh", "-c", "echo; printf 'all \\033[1mwell\\nsecond'")
    assert (result.passed, result.detail) == (True, "all \\x1b[1mwell")
    assert (await run("true")).detail == "exit status 0"


async def test_another_status_fails() -> None:
    result = await run("sh", "-c", "echo no database >&2; exit 3")
    assert (result.reason, result.detail) == (DownReason.BAD_STATUS, "exit status 3: no database")
    assert (await run("false")).detail == "exit status 1"


async def test_a_program_that_crashes_fails() -> None:
    result = await run("sh", "-c", "kill -SEGV $$")
    assert (result.reason, result.detail) == (DownReason.BAD_STATUS, "ended by SIGSEGV")


async def test_the_program_is_told_whom_to_probe() -> None:
    result = await run("sh", "-c", "echo $FAIRLEAD_ADDRESS $FAIRLEAD_PORT")
    assert result.detail == "127.0.0.1 8080"


async def test_arguments_are_not_for_a_shell() -> None:
    assert (await run("echo", "$HOME; exit 1", "*")).detail == "$HOME; exit 1 *"


@pytest.mark.parametrize("argv", [("/nonexistent",), ("/etc/passwd",), ("a\0b",), ()])
async def test_what_cannot_be_run_is_an_error_of_this_node(argv: tuple[str, ...]) -> None:
    assert (await run(*argv)).reason is DownReason.LOCAL_ERROR


async def test_the_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    before = descriptors()
    started = time.monotonic()
    script = f"sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/parent; trap '' TERM INT; wait; sleep 1000"
    result = await run("sh", "-c", script, timeout_s=0.5)
    assert (result.reason, result.detail) == (DownReason.TIMEOUT, "sh took longer than 0.5 s")
    assert time.monotonic() - started < 20
    await ended(tmp_path / "child")
    await reaped(tmp_path / "parent", before)


async def test_children_of_a_program_that_ended_are_killed(tmp_path: Path) -> None:
    """Also when they hold its output open."""
    result = await run("sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/child; echo well")
    assert (result.passed, result.detail) == (True, "well")
    await ended(tmp_path / "child")


async def test_cancellation_kills_and_leaves_nothing(tmp_path: Path) -> None:
    before = descriptors()
    script = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 1000"
    task = asyncio.create_task(run("sh", "-c", script))
    await until_later((tmp_path / "pid").exists, 10, "the program runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await reaped(tmp_path / "pid", before)


async def test_endless_output_neither_blocks_the_program_nor_fills_memory() -> None:
    result = await run("sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; echo; exit 7")
    assert result.reason is DownReason.BAD_STATUS
    assert result.detail == f"exit status 7: {'x' * 77}..."


async def test_a_program_that_closes_its_output_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the event loop does not spin on the end of the pipe meanwhile."""
    reads: list[int] = []

    def read(fd: int, size: int) -> bytes:
        reads.append(fd)
        return os_read(fd, size)

    os_read = os.read
    monkeypatch.setattr("fairlead.probes.exec.os.read", read)
    result = await run("sh", "-c", "echo early; exec >&- 2>&-; sleep 0.1")
    assert (result.passed, result.detail) == (True, "early")
    assert len(reads) <= 5  # subprocess reads too


async def test_it_runs_in_a_session_of_its_own() -> None:
    result = await run("sh", "-c", "ps -o sid= -p $$ | tr -d ' \\n'; echo -$$")
    session, _, pid = result.detail.partition("-")
    assert session == pid
    assert int(session) != os.getsid(0)


async def test_it_does_not_share_the_daemons_input() -> None:
    saved, (reader, writer) = os.dup(0), os.pipe()
    try:
        os.dup2(reader, 0)
        assert (await run("sh", "-c", "cat; echo nothing to read")).detail == "nothing to read"
    finally:
        os.dup2(saved, 0)
        for fd in (saved, reader, writer):
            os.close(fd)
