# SPDX-License-Identifier: Apache-2.0
"""What the agent on a server answers: one line of words, as HAProxy's ``agent-check`` defines them.

Words stand in any order and case, between spaces, tabs or commas: ``75%``; ``maxconn:30``; ``ready``, ``drain``,
``maint``; ``up``, and ``down``, ``fail``, ``failed`` or ``stopped``, with a reason for people after ``#``. Unknown
words are passed over, so that agents can learn new ones; a line without a known one breaks the protocol.
"""

from __future__ import annotations

import re
from dataclasses import replace

from fairlead.errors import MalformedPacket
from fairlead.model.health import AgentReport
from fairlead.model.pool import AdminState

MAX_LINE = 1024
MAX_CONNECTIONS = 2_000_000_000
_REASON_CHARACTERS = 80
_BETWEEN = re.compile("[ \\t,]+")
_SHARE = re.compile("(?:weight:)?([0-9]{1,9})%")
_LIMIT = re.compile("maxconn:([0-9]{1,9})")
_STATES = {"up": True, "down": False, "fail": False, "failed": False, "stopped": False}


class AgentLine:
    """Collects an answer until its line is complete."""

    __slots__ = ("_received",)

    def __init__(self) -> None:
        self._received = b""

    def receive_data(self, data: bytes) -> AgentReport | None:
        """Take the next bytes; empty: the agent has closed, which ends the line, too.

        Returns:
            The answer when it is complete; what follows the line is not looked at.

        Raises:
            MalformedPacket: It is none.
        """
        self._received += data
        line, end, _ = self._received.partition(b"\n")
        if len(line) > MAX_LINE:
            raise MalformedPacket(f"a line of more than {MAX_LINE} bytes")
        return parse(line) if end or not data else None


def parse(line: bytes) -> AgentReport:
    """The meaning of one line; of words that contradict each other the last one counts.

    Raises:
        MalformedPacket: There is no known word in it.
    """
    words, sharp, reason = line.decode("utf-8", "replace").strip().partition("#")
    report = AgentReport()
    for word in _BETWEEN.split(words.lower()):
        if found := _SHARE.fullmatch(word):
            report = replace(report, share=min(100, int(found.group(1))))
        elif found := _LIMIT.fullmatch(word):
            report = replace(report, max_connections=min(MAX_CONNECTIONS, int(found.group(1))))
        elif word in _STATES:
            report = replace(report, up=_STATES[word])
        elif word in set(AdminState):
            report = replace(report, admin=AdminState(word))
    if report == AgentReport():
        raise MalformedPacket("no word that is known")
    told = "".join(c if c.isprintable() else "?" for c in reason.strip()[:_REASON_CHARACTERS])
    return replace(report, reason=told) if sharp else report
