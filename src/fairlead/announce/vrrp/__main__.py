# SPDX-License-Identifier: Apache-2.0
"""``python -m fairlead.announce.vrrp CONTROL-SOCKET``: started by the agent, and outlives it."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path

from fairlead.announce.base import Event
from fairlead.announce.vrrp.host import be_punctual, keep_few_rights, missing_rights
from fairlead.announce.vrrp.process import Process


def main() -> int:
    """Run until told to end; the exit code."""
    # The agent decides when this process ends; a terminal's Ctrl-C is meant for the agent.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if missing_rights():
        sys.stderr.write("owning VIPs needs CAP_NET_ADMIN and CAP_NET_RAW; run as root or grant them in the unit\n")
        return 1
    try:
        process = Process(Path(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"{_explain(error)}\n")
        return 1

    def end(_number: int, _frame: object) -> None:
        process.asked_to_end = True

    signal.signal(signal.SIGTERM, end)
    for refused in (*be_punctual(), *keep_few_rights()):
        process.tell(Event("vrrp_not_permitted", "vrrp", refused, "warning"))
    process.run()
    return 0


def _explain(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another fairlead owns VIPs in this network namespace; only one may"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
