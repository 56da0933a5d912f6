# SPDX-License-Identifier: Apache-2.0
"""Runs tests that are coroutines, lets none leave a task, descriptor or complaint behind, and makes certificates."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.servers import descriptors


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    _run_cleanly(pyfuncitem.obj(**arguments))
    return True


def _run_cleanly(test: Coroutine[Any, Any, None]) -> None:
    async def watched() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        before = descriptors()
        await test
        gc.collect()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert descriptors() <= before
        assert not complaints

    asyncio.run(watched())


@dataclass(frozen=True)
class Certificates:
    """Files of one self-made authority: PEM, key and certificate of a server in one file."""

    authority: Path
    good: Path  # for good.test and 127.0.0.1
    stranger: Path  # for the same names, by itself


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    authority = _make(directory, "authority", "-addext", "keyUsage=keyCertSign")
    names = ("-addext", "subjectAltName=DNS:good.test,IP:127.0.0.1")
    good = _make(directory, "good", *names, "-CA", str(authority), "-CAkey", str(authority))
    return Certificates(authority, good, _make(directory, "stranger", *names))


def _make(directory: Path, name: str, *options: str) -> Path:
    file = directory / f"{name}.pem"
    key = directory / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
        "-subj",
    ]
    command += [f"/CN={name}", "-keyout", str(key), "-out", str(file), *options]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(key.read_bytes() + file.read_bytes())
    return file
