# SPDX-License-Identifier: Apache-2.0
"""The composition root. Importing it costs nothing: verbs that ask a daemon must start at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fairlead.cli.local import DemoOptions, RunOptions
    from fairlead.model.configuration import Configuration
    from fairlead.model.host import Finding


def main() -> None:
    """The program ``fairlead``; ends the process with its exit code."""
    from fairlead.cli.local import LocalVerbs  # noqa: PLC0415 - only the entry point needs them
    from fairlead.cli.main import build  # noqa: PLC0415

    build(LocalVerbs(run=_run, demo=_demo, check=_check, cleanup=_cleanup, doctor=_doctor))()


def _run(options: RunOptions) -> int:
    from fairlead.app import verbs  # noqa: PLC0415 - the daemon's libraries

    return verbs.run(options)


def _demo(options: DemoOptions) -> int:
    from fairlead.app import verbs  # noqa: PLC0415

    return verbs.demo(options)


def _check(file: Path) -> Configuration:
    from fairlead.app import verbs  # noqa: PLC0415

    return verbs.check(file)


def _cleanup(socket: Path) -> list[str]:
    from fairlead.app import verbs  # noqa: PLC0415

    return verbs.cleanup(socket)


def _doctor(configuration: Configuration, as_real_server: bool) -> Sequence[Finding]:
    from fairlead.app import verbs  # noqa: PLC0415

    return verbs.doctor(configuration, as_real_server)
