# SPDX-License-Identifier: Apache-2.0
"""What passes on the switch of a test LAN: recorded by tcpdump, judged by tshark."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

from support.netns import Lan
from support.wait import until


class Capture:
    """Records what matches ``filter_`` on a bridge while its block runs."""

    def __init__(self, lan: Lan, file: Path, filter_: str, bridge: str = "br0") -> None:
        self.file = file
        self._command = ["ip", "netns", "exec", lan.name, "tcpdump", "-i", bridge, "-U", "--immediate-mode"]
        self._command += ["-w", str(file), "-Z", "root", filter_]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        until(lambda: self.file.exists() and self.file.stat().st_size >= 24, 10, "tcpdump records")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    def fields(self, *names: str, only: str = "") -> list[tuple[str, ...]]:
        """The values of tshark's fields, a tuple per frame."""
        command = ["tshark", "-n", "-r", str(self.file), "-T", "fields", "-E", "separator=|"]
        for name in names:
            command += ["-e", name]
        if only:
            command += ["-Y", only]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return [tuple(line.split("|")) for line in done.stdout.splitlines()]
