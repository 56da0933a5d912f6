# SPDX-License-Identifier: Apache-2.0
"""The generated reference pages say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["command-line.md", "api.md", "metrics.md", "configuration.md"])
def test_a_generated_page_is_fresh(generate: ModuleType, page: str) -> None:
    assert (DOCS / "reference" / page).read_text() == generate.PAGES[page](), "stale: run make docs"


def test_no_generated_page_is_left_out(generate: ModuleType) -> None:
    assert set(generate.PAGES) == {"command-line.md", "api.md", "metrics.md", "configuration.md"}


def test_every_metric_and_verb_is_there(generate: ModuleType) -> None:
    metrics, verbs = generate.metric_names(), generate.command_line()
    assert metrics.count("| `fairlead_") >= 25
    assert "fairlead_service_rejected_total` | counter | `service`, `reason`" in metrics
    assert all(
        f"## fairlead {verb}\n" in verbs for verb in ("run", "demo", "check", "show", "drain", "weight", "reload")
    )
