# SPDX-License-Identifier: Apache-2.0
"""The running picture of ``fairlead demo``: views in, one screen of text out. Never reads a clock, never writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fairlead.model.views import EventView, ServerView, ServiceView

SHOWN_EVENTS = 8
BAR = 20
GREEN, YELLOW, RED, BOLD, DIM = "32", "33", "31", "1", "2"
HEADINGS = ("SERVER", "ADDRESS", "WEIGHT", "HEALTH", "ADMIN", "ACTIVE", "CONN/S", "TOTAL", "")
CLEAR = "\x1b[H\x1b[J"  # what to write before a screen that replaces the last one


def render(
    services: Sequence[ServiceView],
    events: Sequence[EventView],
    hints: Sequence[str],
    width: int,
    colour: bool,
    *,
    before: Sequence[ServiceView] = (),
    elapsed_s: float = 0.0,
    title: str = "fairlead demo",
) -> str:
    """Draw one screen.

    Args:
        services: What is offered now.
        events: What happened, oldest first; the newest are shown.
        hints: Lines to type, shown as they are.
        width: Columns of the terminal; longer lines are cut, except hints, which are there to be copied.
        colour: Whether to use ANSI colours.
        before: The services ``elapsed_s`` seconds ago, from which rates are computed.
        elapsed_s: Age of ``before``; 0: no rates.
        title: First line.

    Returns:
        Lines that end in a newline each.
    """
    paint = _Paint(colour)
    earlier = {server.key: server for service in before for server in service.servers}
    lines = [paint(title[:width], BOLD), ""]
    for service in services:
        lines += _service(service, earlier, elapsed_s, width, paint)
        lines.append("")
    if events:
        lines.append(paint("What happened", BOLD))
        lines += [_event(event, width, paint) for event in events[-SHOWN_EVENTS:]]
        lines.append("")
    if hints:
        lines.append(paint("Type in another terminal", BOLD))
        lines += [f"  {hint}" for hint in hints]
    return "".join(f"{line}\n" for line in lines)


def lines_to_type(
    pids: Mapping[str, int], ports: Mapping[str, int], pool: str, *, program: str, python: str
) -> list[str]:
    """The commands that kill, revive, drain and undrain a server of the demo, ready to be copied.

    Args:
        pids: Name to process id of the servers that live.
        ports: Name to port of all servers.
        pool: Their pool.
        program: How to call fairlead, with ``--socket`` where it is needed.
        python: The interpreter that has fairlead.
    """
    names = list(ports)
    living = [name for name in names if name in pids]
    dead = [name for name in names if name not in pids]
    lines = []
    if living:
        lines.append(f"kill -9 {pids[living[-1]]:<8}# {living[-1]} crashes")
    lines += [f"{python} -m fairlead.demo.servers {name} {ports[name]} &    # {name} comes back" for name in dead[:1]]
    lines.append(f"{program} drain {pool}/{names[0]}    # no new connections for {names[0]}; then: ready")
    lines.append(f"{program} weight {pool}/{names[-1]} 3")
    lines.append(f"{program} show")
    return lines


class _Paint:
    """Wraps text in an ANSI colour, or leaves it."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._on and text else text


def _service(
    service: ServiceView, earlier: Mapping[str, ServerView], elapsed_s: float, width: int, paint: _Paint
) -> list[str]:
    rates = {server.key: _rate(server, earlier.get(server.key), elapsed_s) for server in service.servers}
    most = max(rates.values(), default=0.0)
    tone = {"up": GREEN, "degraded": YELLOW}.get(service.state, RED)
    head = f"  {' '.join(service.listen)}  {service.protocol}  {service.scheduler}  {service.active} connections now"
    refused = sum(service.rejected.values())
    if refused:
        head += f"  {refused} refused: " + ", ".join(f"{word} {n}" for word, n in service.rejected.items() if n)
    room = max(0, width - len(service.name) - len(service.state) - 2)
    lines = [f"{paint(service.name, BOLD)}  {paint(service.state, tone)}{head[:room]}"]
    rows = [_row(server, rates[server.key], most) for server in service.servers]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    lines.append(paint(_align(HEADINGS, widths)[:width], DIM))
    for server, row in zip(service.servers, rows, strict=True):
        lines.append(paint(_align(row, widths)[:width], _tone(server)))
    return lines


def _row(server: ServerView, rate: float, most: float) -> tuple[str, ...]:
    health = "unchecked" if server.health == "none" else server.health
    if server.health == "down" and server.down_reason:
        health += f" ({server.down_reason})"
    weight = str(server.weight)
    if server.effective_weight != server.weight:
        weight = f"{server.effective_weight} of {server.weight}"
    admin = server.admin
    if server.backup:
        admin += ", backup"
    bar = "#" * round(BAR * rate / most) if most > 0 else ""
    return (
        server.name, server.address, weight, health, admin, str(server.active), f"{rate:.1f}",
        str(server.connections_total), bar,
    )  # fmt: skip


def _align(cells: Sequence[str], widths: Sequence[int]) -> str:
    numeric = {"WEIGHT", "ACTIVE", "CONN/S", "TOTAL"}
    padded = [
        cell.rjust(size) if heading in numeric else cell.ljust(size)
        for cell, size, heading in zip(cells, widths, HEADINGS, strict=True)
    ]
    return ("  " + "  ".join(padded)).rstrip()


def _rate(now: ServerView, then: ServerView | None, elapsed_s: float) -> float:
    if then is None or elapsed_s <= 0:
        return 0.0
    return max(0, now.connections_total - then.connections_total) / elapsed_s


def _tone(server: ServerView) -> str:
    if server.health == "down":
        return RED
    return GREEN if server.effective_weight > 0 else YELLOW


def _event(event: EventView, width: int, paint: _Paint) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event.at))
    text = f"  {event.kind}  {event.subject}  {event.message}"
    return paint(clock, DIM) + text[: max(0, width - len(clock))]
