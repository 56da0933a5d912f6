# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: one line per event on standard error, `key=value` pairs, the same words as the API's events."""

from __future__ import annotations

import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger


def configure(*, timestamps: bool, out: TextIO | None = None) -> None:
    """Set the log up.

    Args:
        timestamps: False under a service manager whose journal adds them itself.
        out: Where the log goes instead of standard error.
    """
    stamp: list[structlog.typing.Processor] = (
        [structlog.processors.TimeStamper(fmt="iso", utc=True)] if timestamps else []
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *stamp,
            _one_line,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event", "subject", "message"], drop_missing=True
            ),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=out or sys.stderr),
        cache_logger_on_first_use=False,
    )


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Nothing a peer sends may break a line in two."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else " " for c in value)
    return event
