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

from support.order import dealt

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

TOKEN = "FAIRLEAD_TEST_PROCESS"
GRACE_S = 10.0
LONG_S = 120.0  # who asks for more than this is one of the few that take a minute or more


def pytest_configure(config: pytest.Config) -> None:
    # Inherited by everything the tests start, also by what outlives its parent.
    os.environ[TOKEN] = f"{os.getpid()}-{time.monotonic_ns()}"
    # The tests judge this tree, also in the processes they start, whatever may be installed.
    os.environ["PYTHONPATH"] = str(config.rootpath / "src")
    # Hundreds of daemons are started: compiling the same sources for each of them is a third of what its start costs.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        long = sorted((item for item in items if _limit_s(item) > LONG_S), key=_limit_s, reverse=True)
        items[:] = dealt(long, [item for item in items if _limit_s(item) <= LONG_S], workers)


def _limit_s(item: pytest.Item) -> float:
    """After how many seconds a test is ended, when it says so itself."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark else 0.0


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


def _processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208 - twice a test, so quickly


def _left_processes(before: set[int]) -> dict[int, str]:
    """Process id to command line of what this test process started since ``before`` and what still lives."""
    mark = f"{TOKEN}={os.environ[TOKEN]}".encode()
    left: dict[int, str] = {}
    for pid in _processes() - before:
        directory = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                left[pid] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return left


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """Fail the test that leaves a process running, and end that process."""
    before = _processes()
    yield
    deadline = time.monotonic() + GRACE_S
    while (left := _left_processes(before)) and time.monotonic() < deadline:
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
