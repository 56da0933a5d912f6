# SPDX-License-Identifier: Apache-2.0
"""The generated reference pages say what the code does."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from fairlead.cli import exits
from fairlead.cli.local import LocalVerbs
from fairlead.cli.main import build
from fairlead.config.load import Source, load

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENTS = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


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


def test_every_exit_code_is_explained(generate: ModuleType) -> None:
    """And which it is when the host, not the file, is at fault (F20)."""
    codes = {value for value in vars(exits).values() if isinstance(value, int)} | {click.UsageError.exit_code}
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", generate.command_line(), re.MULTILINE))
    assert {int(code) for code in rows} == codes
    assert "another XDP program" in rows[str(exits.FAILED)]


def test_every_configuration_in_a_document_loads() -> None:
    found = 0
    for path in DOCUMENTS:
        if path.parent.name == "reference":
            continue
        for block in re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            load([Source(str(path), block.encode())], {})
            found += 1
    assert found >= 2


def test_every_command_in_a_document_exists() -> None:
    nothing: Callable[..., Any] = lambda *_: 0  # noqa: E731
    program = build(LocalVerbs(run=nothing, demo=nothing, check=nothing, cleanup=nothing, doctor=nothing))
    used = set()
    for path in DOCUMENTS:
        for line in re.findall(r"`([^`\n]+)`|^\$ (.+)$", path.read_text(), re.MULTILINE):
            used |= set(re.findall(r"^(?:\.venv/bin/)?fairlead ([a-z-]+)(.*)", "".join(line)))
    for verb, rest in used:
        assert verb in program.commands, f"fairlead {verb}"
        options = {word for option in program.commands[verb].params for word in option.opts}
        for option in re.findall(r" (--?[a-z-]+)", rest.partition("#")[0]):
            assert option in options, f"fairlead {verb} {option}"
    assert {"run", "show", "drain", "reload", "check"} <= {verb for verb, _ in used}


def test_every_make_target_in_a_document_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (DOCS.parent / "Makefile").read_text(), re.MULTILINE))
    documents = [*DOCUMENTS, DOCS.parent / "CONTRIBUTING.md"]
    used = {target for path in documents for target in re.findall(r"[`$] ?make ([a-z]+)", path.read_text())}
    assert used
    assert used <= targets
