# SPDX-License-Identifier: Apache-2.0
"""Where output goes and what it may look like there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any

FORMATS = ("table", "json", "yaml")


def to_terminal() -> bool:
    """Whether somebody watches standard output on a terminal."""
    return sys.stdout.isatty()


def colour_wanted() -> bool:
    """Colour on a terminal only, and not against NO_COLOR (no-color.org) or a terminal that has none."""
    return to_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write(parts: Iterable[str]) -> None:
    """Write ``parts`` as they come, and flush."""
    for part in parts:
        sys.stdout.write(part)
    sys.stdout.flush()


def as_yaml(value: Any) -> str:
    """``value`` as a YAML document."""
    import yaml  # noqa: PLC0415 - only those who want YAML wait for it

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def abandon_stdout() -> None:
    """The reader has gone: let nothing complain about it at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
