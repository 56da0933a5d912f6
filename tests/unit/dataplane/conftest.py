# SPDX-License-Identifier: Apache-2.0
"""The worker that tests of the proxy's driver start."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.worker import build_once


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker, freshly built."""
    return build_once("all", tmp_path_factory)
