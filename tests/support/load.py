# SPDX-License-Identifier: Apache-2.0
"""The C load generator of the benchmark, on nodes of a test: streams and floods that Python could not keep up."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from bench.run import compile_load
from support.daemon import inside_of
from support.netns import Node
from support.xdp import ROOT


@cache
def load() -> Path:
    """The program; compiled once, until a source changes."""
    digest = hashlib.blake2b(digest_size=8)
    for part in sorted((ROOT / "bench/load").iterdir()):
        digest.update(part.read_bytes())
    place = ROOT / "build" / "load" / digest.hexdigest()
    if not (place / "load").exists():
        place.mkdir(parents=True, exist_ok=True)
        compile_load(place)
    return place / "load"


def loading(node: Node, *arguments: object) -> list[str]:
    """The command that runs the load generator on a node."""
    return inside_of(node, str(load()), *map(str, arguments))


@dataclass(frozen=True)
class Outcome:
    """What became of a stream: questions, those without an answer, flows that changed servers, rate."""

    sent: int
    lost: int
    moved: int
    per_second: float


class Steady:
    """UDP flows that ask at a steady rate while the block runs; then ``outcome`` says what became of them."""

    def __init__(self, node: Node, host: str, port: int, per_second: int, flows: int) -> None:
        self._command = loading(node, "steady", host, port, per_second, flows)
        self._outcome: Outcome | None = None

    @property
    def outcome(self) -> Outcome:
        """What became of them."""
        assert self._outcome is not None
        return self._outcome

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        try:
            text, _none = self._process.communicate("", timeout=10)
            self._outcome = Outcome(**json.loads(text))
        finally:
            self._process.kill()
            self._process.wait()
