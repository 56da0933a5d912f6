# SPDX-License-Identifier: Apache-2.0
"""A LAN for each test, and pairs of daemons on it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.netns import Lan, Node, lan
from support.vipnode import VipNode


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Of a bed that tests of a module share because they leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def net() -> Iterator[Lan]:
    with lan() as made:
        yield made


@pytest.fixture
def daemon(runtime: Path) -> Iterator[Callable[[Node, str], VipNode]]:
    """Starts a daemon on a node with a configuration; all end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda node, text: stack.enter_context(VipNode(node, runtime, text))
