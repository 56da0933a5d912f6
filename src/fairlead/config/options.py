# SPDX-License-Identifier: Apache-2.0
"""One service without a file: ``fairlead run --listen A:P --server A:P ...`` through the same schema and checks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fairlead.config.build import build
from fairlead.config.checks import check
from fairlead.config.findings import Findings
from fairlead.config.gaps import refuse
from fairlead.config.reader import NOWHERE, Map, Seq
from fairlead.config.tree import Entry, Tree
from fairlead.config.validate import validate
from fairlead.errors import ConfigError, Problem
from fairlead.model.configuration import Configuration

COMMAND_LINE = "<command line>"
NAME = "main"

# What a problem's path begins with, and the option that it came from.
_OPTIONS = {
    f"services.{NAME}.listen": "--listen",
    f"services.{NAME}.scheduler": "--scheduler",
    f"pools.{NAME}.servers": "--server",
    f"pools.{NAME}.health": "--health",
    "proxy.workers": "--workers",
}


def from_options(
    listen: Sequence[str],
    server: Sequence[str],
    *,
    scheduler: str | None = None,
    health: str | None = None,
    workers: str | None = None,
) -> Configuration:
    """Return a configuration with one service and one pool, both named ``main``; None takes the file's default.

    Args:
        listen: Each ADDRESS:PORT, as ``services.NAME.listen``.
        server: Each ADDRESS:PORT, as an item of ``pools.NAME.servers``.
        scheduler: As ``services.NAME.scheduler``.
        health: ``none``, or a type of monitor, which takes its defaults.
        workers: As ``proxy.workers``.

    Raises:
        ConfigError: With every problem; their file is ``<command line>``, their line 0, their path the option.
    """
    service: dict[str, object] = {"pool": NAME}
    pool: dict[str, object] = {}
    if listen:
        service["listen"] = _seq(listen)
    if server:
        pool["servers"] = _seq(server)
    if scheduler is not None:
        service["scheduler"] = scheduler
    if health is not None:
        pool["health"] = health
    tree = Tree()
    tree.named["services"][NAME] = Entry(0, NOWHERE, NOWHERE, _map(service))
    tree.named["pools"][NAME] = Entry(0, NOWHERE, NOWHERE, _map(pool))
    if workers is not None:
        tree.settings["proxy"] = Entry(0, NOWHERE, NOWHERE, _map({"workers": workers}))

    found = Findings([COMMAND_LINE])
    draft = validate(tree, found)
    refuse(draft, tree, found)
    check(draft, tree, found)
    if found.failed:
        raise ConfigError(tuple(_as_option(problem) for problem in found.errors()))
    options = repr((*listen, *server, scheduler, health, workers))
    return build(draft, hashlib.sha256(options.encode(errors="surrogateescape")).hexdigest())


def _as_option(problem: Problem) -> Problem:
    """The same problem, under the name of its option."""
    option = next((option for path, option in _OPTIONS.items() if problem.path.startswith(path)), problem.path)
    return Problem(COMMAND_LINE, 0, 0, option, problem.message)


def _map(values: dict[str, object]) -> Map:
    result = Map()
    for key, value in values.items():
        result[key] = value
        result.marks[key] = (NOWHERE, NOWHERE)
    return result


def _seq(values: Sequence[str]) -> Seq:
    result = Seq()
    result.extend(values)
    result.marks.extend([NOWHERE] * len(values))
    return result
