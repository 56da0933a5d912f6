# SPDX-License-Identifier: Apache-2.0
"""Configuration texts for tests; ``§`` in a text marks the place where a problem is expected."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fairlead.config import Loaded, Source, load
from fairlead.errors import ConfigError, Problem
from fairlead.model.configuration import Configuration

FILE = "fairlead.yaml"
POOL = "\npools: {p: {servers: [192.0.2.1:80]}}\n"
SERVICE = "\nservices: {s: {listen: 192.0.2.9:80, pool: p}}\n"


def loaded(text: str | bytes, environment: Mapping[str, str] | None = None) -> Loaded:
    """What one file gives."""
    data = text if isinstance(text, bytes) else text.encode()
    return load([Source(FILE, data)], environment or {})


def configuration(text: str) -> Configuration:
    """What one file without warnings gives."""
    result = loaded(text)
    assert result.warnings == ()
    return result.configuration


def problems(text: str | bytes, environment: Mapping[str, str] | None = None) -> tuple[Problem, ...]:
    """What is wrong with one file."""
    with pytest.raises(ConfigError) as caught:
        loaded(text, environment)
    assert caught.value.problems
    return caught.value.problems


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and the 1-based places of these."""
    places = []
    while (at := text.find("§")) >= 0:
        text = text[:at] + text[at + 1 :]
        places.append((text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1))
    return text, places


def assert_problem(text: str, path: str, said: str) -> None:
    """Exactly one problem, at the mark, with this path, whose message contains ``said``."""
    text, places = marked(text)
    found = problems(text)
    assert [(p.line, p.column) for p in found] == places, "\n".join(map(str, found))
    assert found[0].path == path
    assert said in found[0].message
    assert found[0].file == FILE
