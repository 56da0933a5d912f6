# SPDX-License-Identifier: Apache-2.0
"""An announcer in memory: keeps what is wished of it and reports what a test says."""

from __future__ import annotations

from fairlead.announce.base import Report, Wanted


class FakeAnnouncer:
    """Implements ``fairlead.announce.base.Announcer``."""

    def __init__(self) -> None:
        self.wanted = Wanted()
        self.told = Report()
        self.commands: list[tuple[str, str]] = []
        self.running = False

    async def start(self) -> None:
        self.running = True

    def set(self, wanted: Wanted) -> None:
        self.wanted = wanted

    def report(self) -> Report:
        return self.told

    def release(self, instance: str) -> None:
        self.commands.append(("release", instance))

    def claim(self, instance: str) -> None:
        self.commands.append(("claim", instance))

    async def stop(self) -> None:
        self.commands.append(("stop", ""))
        self.running = False

    async def detach(self) -> None:
        self.running = False
