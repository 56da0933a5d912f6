# SPDX-License-Identifier: Apache-2.0
"""The object files of the data plane, by what their programs do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROGRAMS = ("fairlead", "census", "settle", "carry", "ways", "resolve")  # in the order of the fields below


@dataclass(frozen=True, slots=True)
class Programs:
    """Object files: what forwards, counts flows, marks strays, carries flows over, guides probes, resolves."""

    forward: Path
    census: Path
    settle: Path
    carry: Path
    ways: Path
    resolve: Path

    @classmethod
    def found(cls, by_name: Callable[[str], Path]) -> Self:
        """All of them, each by its name."""
        return cls(*map(by_name, PROGRAMS))
