# SPDX-License-Identifier: Apache-2.0
"""The worker with address and undefined behaviour sanitizers, built once per run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.peers import Server
from support.worker import Worker, build_once
from support.worker_abi import Layouts


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_once("asan", tmp_path_factory)


@pytest.fixture(scope="session")
def layouts(program: Path) -> Layouts:
    return Layouts(program)


@pytest.fixture
def start(program: Path, runtime: Path) -> Iterator[Callable[..., Worker]]:
    """Starts workers that are ended after the test."""
    with contextlib.ExitStack() as stack:

        def start_one(**options: Any) -> Worker:
            return stack.enter_context(Worker(program, runtime, **options))

        yield start_one


@pytest.fixture
def worker(start: Callable[..., Worker]) -> Worker:
    return start()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        yield one
