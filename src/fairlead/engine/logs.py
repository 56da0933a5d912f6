# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: one line per event on standard error, `key=value` pairs, the same words as the API's events."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import TextIO, cast

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
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Forgiving(out or sys.stderr))),
        cache_logger_on_first_use=False,
    )


class _Forgiving(io.TextIOBase):
    """A log that cannot be written, a full disk or a reader that has gone, is no reason to stop working."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            self._out.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError):
            self._out.flush()


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Nothing a peer sends may break a line in two."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else " " for c in value)
    return event
