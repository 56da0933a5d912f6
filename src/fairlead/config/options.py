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

# The longest path first: what a problem's path begins with, and the option it came from.
_OPTIONS = (
    (f"services.{NAME}.listen", "--listen"),
    (f"services.{NAME}.scheduler", "--scheduler"),
    (f"pools.{NAME}.servers", "--server"),
    (f"pools.{NAME}.health.path", "--health-path"),
    (f"pools.{NAME}.health.interval", "--health-interval"),
    (f"pools.{NAME}.health.timeout", "--health-timeout"),
    (f"pools.{NAME}.health.rise", "--health-rise"),
    (f"pools.{NAME}.health.fall", "--health-fall"),
    (f"pools.{NAME}.health", "--health"),
    ("proxy.workers", "--workers"),
)


def from_options(
    listen: Sequence[str],
    server: Sequence[str],
    *,
    scheduler: str | None = None,
    health: str | None = None,
    health_path: str | None = None,
    health_interval: str | None = None,
    health_timeout: str | None = None,
    health_rise: str | None = None,
    health_fall: str | None = None,
    workers: str | None = None,
) -> Configuration:
    """Return a configuration with one service and one pool, both named ``main``; None takes the file's default.

    Args:
        listen: Each ADDRESS:PORT, as ``services.NAME.listen``.
        server: Each ADDRESS:PORT, as an item of ``pools.NAME.servers``.
        scheduler: As ``services.NAME.scheduler``.
        health: ``none``, or a type of monitor.
        health_path: As ``path`` of a monitor; so are the other ``health_*`` options. Without ``health`` it means http.
        health_interval: From one probe to the next.
        health_timeout: For one probe.
        health_rise: Passed probes that bring a server up.
        health_fall: Failed probes that take it down.
        workers: As ``proxy.workers``.

    Raises:
        ConfigError: With every problem; their file is ``<command line>`` and their path the option.
    """
    knobs = {
        "path": health_path,
        "interval": health_interval,
        "timeout": health_timeout,
        "rise": health_rise,
        "fall": health_fall,
    }
    given = {key: value for key, value in knobs.items() if value is not None}
    kind = health or ("http" if health_path is not None else "tcp")
    monitor = kind if kind == "none" else _map({"type": kind, **given})
    service: dict[str, object] = {"listen": _seq(listen), "pool": NAME}
    if scheduler is not None:
        service["scheduler"] = scheduler
    tree = Tree()
    tree.named["services"][NAME] = Entry(0, NOWHERE, NOWHERE, _map(service))
    tree.named["pools"][NAME] = Entry(0, NOWHERE, NOWHERE, _map({"servers": _seq(server), "health": monitor}))
    if workers is not None:
        tree.settings["proxy"] = Entry(0, NOWHERE, NOWHERE, _map({"workers": workers}))

    found = Findings([COMMAND_LINE])
    draft = validate(tree, found)
    refuse(draft, tree, found)
    check(draft, tree, found)
    problems = tuple(_as_option(problem) for problem in found.errors())
    problems += tuple(
        Problem(COMMAND_LINE, 0, 0, option, "is missing; give it at least once")
        for option, values in (("--listen", listen), ("--server", server))
        if not values
    )
    if kind == "none" and given:
        problems += (Problem(COMMAND_LINE, 0, 0, "--health", f"none probes nothing; leave {', '.join(given)} out"),)
    if problems:
        raise ConfigError(problems)
    options = repr((*listen, *server, *sorted(given.items()), scheduler, kind, workers))
    return build(draft, hashlib.sha256(options.encode()).hexdigest())


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


def _as_option(problem: Problem) -> Problem:
    """The same problem, in the words of the command line."""
    path, message = problem.path, problem.message
    for prefix, option in _OPTIONS:
        if path.startswith(prefix):
            path = option
            break
    if message.startswith("unknown key"):
        message = "does not go with this kind of probe"
    return Problem(COMMAND_LINE, 0, 0, path, message)
