# SPDX-License-Identifier: Apache-2.0
"""The VRRP process notices that it was stopped, wherever in its loop that was (F01)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from fairlead.announce.base import Event
from fairlead.announce.vrrp import process
from fairlead.announce.vrrp.process import STALL_S, TICK_S, Process
from support.netns import Lan

pytestmark = pytest.mark.root


class Stopped:
    """A process in whose loop time passes at one place; its clock says what passed."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.process = Process(path)
        self.events: list[Event] = []
        monkeypatch.setattr(self.process._control, "tell", self.events.append)
        self._monkeypatch = monkeypatch

    def turns(self, place: str, seconds: Sequence[float]) -> list[str]:
        """Words of what was told while ``place`` took so much longer in each turn of the loop."""
        inner: Callable[..., object] = getattr(self.process, place)
        left = list(seconds)

        def outer(*arguments: object) -> object:
            if left:
                self.now += left.pop(0)
            self.process.asked_to_end = not left
            return inner(*arguments)

        self._monkeypatch.setattr(self.process, place, outer)
        self.process.run()
        return [event.kind for event in self.events]


@pytest.fixture
def stopped(net: Lan, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stopped]:
    with net.add("one").inside():
        yield Stopped(runtime / "vrrp.sock", monkeypatch)


SHORT_S, LONG_S = TICK_S + STALL_S - 0.1, TICK_S + STALL_S + 0.1


@pytest.mark.parametrize("place", ["_watch", "_hear"])
@pytest.mark.parametrize(
    ("seconds", "told"), [((SHORT_S, SHORT_S), []), ((LONG_S, SHORT_S), ["vrrp_stall"]), ((0, LONG_S), ["vrrp_stall"])]
)
def test_it_is_noticed_once(stopped: Stopped, place: str, seconds: tuple[float, ...], told: list[str]) -> None:
    assert stopped.turns(place, seconds) == told
