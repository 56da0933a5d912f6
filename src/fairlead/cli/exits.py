# SPDX-License-Identifier: Apache-2.0
"""Exit codes, a promise to scripts, and the error that has one of its own."""

from __future__ import annotations

from fairlead.errors import FairleadError

FINE = 0
FAILED = 1
INVALID = 3  # 2, wrong usage, is click's
NO_DAEMON = 4
INTERRUPTED = 130  # as shells count SIGINT
READER_GONE = 141  # as shells count SIGPIPE


class NoDaemon(FairleadError):
    """Nothing, or something that is not fairlead, answers on the socket."""
