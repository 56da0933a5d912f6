# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: none is skipped where it could run, none leaves a process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import structlog

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

TOKEN = "FAIRLEAD_TEST_PROCESS"
GRACE_S = 3.0


def pytest_configure(config: pytest.Config) -> None:
    # Inherited by everything the tests start, also by what outlives its parent.
    os.environ[TOKEN] = f"{os.getpid()}-{time.monotonic_ns()}"
    # The tests judge this tree, also in the processes they start, whatever may be installed.
    os.environ["PYTHONPATH"] = str(config.rootpath / "src")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))


def _refuse_skip(report: Report) -> Report:
    """Root on Linux can set up whatever a test needs: there a skipped test hides something."""
    if report.skipped and sys.platform == "linux" and os.geteuid() == 0:
        report.outcome = "failed"
        report.longrepr = f"skipped, but root on Linux can run every test: {report.longrepr}"
    return report


def _left_processes() -> dict[int, str]:
    """Process id to command line of what this test process started and what still lives."""
    mark = f"{TOKEN}={os.environ[TOKEN]}".encode()
    left: dict[int, str] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        with contextlib.suppress(OSError):
            if pid != os.getpid() and mark in (directory / "environ").read_bytes().split(b"\0"):
                left[pid] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return left


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """Fail the test that leaves a process running, and end that process."""
    before = _left_processes()
    yield
    deadline = time.monotonic() + GRACE_S
    while (left := {pid: line for pid, line in _left_processes().items() if pid not in before}) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"the test left processes running: {left}"


@pytest.fixture
def runtime() -> Iterator[Path]:
    """An empty directory with a short path: the path of a unix socket has room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A test that redirects the log does so for itself alone."""
    yield
    structlog.reset_defaults()
