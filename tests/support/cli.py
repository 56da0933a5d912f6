# SPDX-License-Identifier: Apache-2.0
"""The command line without the daemon behind it: in this process, or in one of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from fairlead.cli.local import LocalVerbs
from fairlead.cli.main import build
from fairlead.errors import ConfigError, Problem
from fairlead.model.configuration import Configuration
from fairlead.model.host import Finding
from fairlead.model.reasons import HostCheck, Severity

PROGRAM = (sys.executable, "-c", "from support.cli import build, local; build(local())()")
FINDINGS = (
    Problem("bad.yaml", 3, 5, "services.web.listn", "unknown key; did you mean `listen`?"),
    Problem("bad.yaml", 9, 1, "pools", "must not be empty"),
)

FOUND = (
    Finding(HostCheck.RP_FILTER, Severity.ERROR, "net.ipv4.conf.eth0.rp_filter", "is strict", "sysctl -w a=2"),
    Finding(HostCheck.LRO, Severity.OK, "eth0", "off"),
)


def environment(**extra: str) -> dict[str, str]:
    """The environment of a subprocess that finds the sources, without what would choose a socket or colours."""
    kept = {
        key: value for key, value in os.environ.items() if key not in {"FAIRLEAD_SOCKET", "NO_COLOR", "FAIRLEAD_DEBUG"}
    }
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "", **extra}


def check(file: Path) -> Configuration:
    """A loader that knows two files."""
    if file.name == "bad.yaml":
        raise ConfigError(FINDINGS)
    return Configuration()


def local() -> LocalVerbs:
    """Local verbs that print what they were asked."""

    def run(options: object) -> int:
        print(options)  # noqa: T201 - its only effect
        return 0

    return LocalVerbs(run, run, check, lambda _: [], lambda *_: FOUND)


def invoke(*arguments: str, verbs: LocalVerbs | None = None, **extra: str) -> Result:
    """Run the program in this process; ``extra`` is environment."""
    cleared = {"FAIRLEAD_SOCKET": None, "NO_COLOR": None, "FAIRLEAD_DEBUG": None}
    return CliRunner().invoke(build(verbs or local()), list(arguments), env={**cleared, **extra})
