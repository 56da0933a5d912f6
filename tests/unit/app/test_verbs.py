# SPDX-License-Identifier: Apache-2.0
"""Reading the configuration while the daemon runs."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.app.verbs import read_again
from fairlead.errors import ConfigError


class Ring:
    """Refers to itself: only the collector finds it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("text", ["services: {}", "services: 7"])
def test_garbage_is_looked_for_before_and_after_and_what_was_read_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "fairlead.yaml"
    file.write_text(text)
    gone = weakref.ref(Ring())
    if text == "services: {}":
        assert asyncio.run(read_again(file)).configuration.services == {}
    else:
        with pytest.raises(ConfigError):
            asyncio.run(read_again(file))
    assert gone() is None
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    later = weakref.ref(Ring())
    gc.collect()
    assert later() is None
