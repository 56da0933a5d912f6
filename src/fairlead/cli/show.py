# SPDX-License-Identifier: Apache-2.0
"""``fairlead show``: once, or again every second with ``--watch``, as a table, JSON or YAML.

Invariant: JSON and YAML carry what the API answered, unchanged; only tables shorten and colour.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fairlead.cli import render
from fairlead.cli.client import PAGE, Client
from fairlead.cli.exits import NoDaemon
from fairlead.cli.output import as_yaml, colour_wanted, to_terminal, write
from fairlead.cli.tables import Layout, Row

WATCH_S = 1.0
AWAY_S = 10.0  # a daemon that restarts is back by then


@dataclass(frozen=True, slots=True)
class Question:
    """What to show, and which of it."""

    what: str
    output: str
    service: str | None = None
    server: str | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    target: str
    rows: Callable[[Any, float], Iterable[Row]]


_SOURCES = {
    "overview": _Source("/v1/services", render.overview),
    "services": _Source("/v1/services", render.services),
    "servers": _Source("/v1/servers", render.servers),
    "health": _Source("/v1/health", render.health),
    "vips": _Source("/v1/vips", render.vips),
    "vrrp": _Source("/v1/vrrp", render.vrrp),
    "status": _Source("/v1/status", render.status),
}


def show(client: Client, question: Question) -> None:
    """Show it once."""
    if question.what in _SOURCES:
        source = _SOURCES[question.what]
        answer = client.get(source.target)
        if question.output == "table":
            rows = source.rows(answer, time.time())
            write(_lines(Layout(colour_wanted()).lines(rows)))
        else:
            write(_encode_whole(answer, question.output))
    else:
        write(_paged(client, question))


def watch(client: Client, question: Question) -> None:
    """Show it again and again until interrupted.

    Raises:
        NoDaemon: At once when there is none, and after ``AWAY_S`` seconds when it does not come back.
    """
    if question.what == "events":
        _follow_events(client, question.output)
        return
    before: Any = None
    first = True
    while True:
        answer = _ask(client, question, first=first)
        if question.output == "table":
            _redraw(question, answer, first=first)
        elif answer != before:
            write([_encode_line(answer, question.output)])
        before, first = answer, False
        time.sleep(WATCH_S)


def _ask(client: Client, question: Question, *, first: bool) -> Any:
    """What the daemon says now, waiting for one that restarts."""

    def ask() -> Any:
        if question.what == "connections":
            pages = client.connections(question.service, question.server)
            return [flow for page in pages for flow in page]
        return client.get(_SOURCES[question.what].target)

    return ask() if first else _patiently(ask)


def _patiently(ask: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + AWAY_S
    while True:
        try:
            return ask()
        except NoDaemon:
            if time.monotonic() > deadline:
                raise
            time.sleep(WATCH_S)


def _redraw(question: Question, answer: Any, *, first: bool) -> None:
    """Draw over the last picture on a terminal; elsewhere one picture follows the other."""
    if question.what == "connections":
        rows: Iterable[Row] = [render.CONNECTION_HEADS, *render.connections(answer, 0)]
    else:
        rows = _SOURCES[question.what].rows(answer, time.time())
    if not to_terminal():
        write([] if first else ["\n"])
        write(_lines(Layout().lines(rows)))
        return
    screen = shutil.get_terminal_size()
    lines = Layout(colour_wanted(), screen.columns).lines(rows)
    if len(lines) >= screen.lines:
        shown = max(screen.lines - 2, 1)
        lines = [*lines[:shown], f"... {len(lines) - shown} more lines"]
    home = "\x1b[H\x1b[2J" if first else "\x1b[H"
    write([home + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"])


def _follow_events(client: Client, output: str) -> None:
    layout = Layout(colour_wanted())
    after = 0
    page = client.event_page(after)
    if output == "table":
        write(_lines(layout.lines([render.EVENT_HEADS])))
    while True:
        if output == "table":
            write(_lines(layout.lines(render.events(page, 0))))
        else:
            write(_encode_line(event, output) for event in page)
        after = page[-1]["id"] if page else after
        if len(page) < PAGE:
            time.sleep(WATCH_S)
        page = _patiently(functools.partial(client.event_page, after))


def _paged(client: Client, question: Question) -> Iterator[str]:
    """A list of any length, written while it is read."""
    if question.what == "events":
        pages, rows, heads = client.events(), render.events, [render.EVENT_HEADS]
    else:
        pages = client.connections(question.service, question.server)
        rows, heads = render.connections, [render.CONNECTION_HEADS]
    if question.output == "table":
        layout = Layout(colour_wanted())
        for page in pages:
            yield from _lines(layout.lines([*heads, *rows(page, 0)]))
            heads = []
    elif question.output == "json":
        before = "[\n"
        for page in pages:
            for item in page:
                yield before + json.dumps(item)
                before = ",\n"
        yield "[]\n" if before == "[\n" else "\n]\n"
    else:
        empty = True
        for page in pages:
            if page:
                yield as_yaml(page)
                empty = False
        if empty:
            yield "[]\n"


def _encode_whole(answer: Any, output: str) -> list[str]:
    return [as_yaml(answer)] if output == "yaml" else [json.dumps(answer, indent=2), "\n"]


def _encode_line(answer: Any, output: str) -> str:
    return f"---\n{as_yaml(answer)}" if output == "yaml" else json.dumps(answer) + "\n"


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (f"{line}\n" for line in lines)
