# SPDX-License-Identifier: Apache-2.0
"""The ``dns`` probe: one question over UDP whose answer has an accepted response code."""

from __future__ import annotations

import secrets

from fairlead.errors import MalformedPacket
from fairlead.model.health import ProbeTarget
from fairlead.model.pool import DnsExpectation
from fairlead.model.reasons import DownReason
from fairlead.probes.datagram import Datagram
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import ProbeFailed, printable
from fairlead.probes.stream import destination
from fairlead.protocols.dns import RCODES, decode_answer, encode_query


async def dns(target: ProbeTarget, deadline: Deadline) -> str:
    """Ask one question.

    Raises:
        ProbeFailed: No answer, one that is not DNS, or another response code.
    """
    expected = target.monitor.dns or DnsExpectation(".", "NS")
    identifier = secrets.randbits(16)
    try:
        query = encode_query(identifier, expected.query, expected.record)
    except ValueError as error:
        raise ProbeFailed(DownReason.LOCAL_ERROR, f"the query cannot be sent: {printable(str(error))}") from error
    deadline.doing = "DNS answer"
    datagram = Datagram(destination(target), deadline)
    try:
        datagram.send(query)
        answer = decode_answer(await _answer_to(identifier, datagram), query)
    except MalformedPacket as error:
        raise ProbeFailed(DownReason.MALFORMED, f"DNS answer: {error}") from error
    finally:
        datagram.close()
    said = f"{answer.rcode_name}, {answer.answers} answers"
    if answer.rcode not in expected.rcodes:
        wanted = ", ".join(RCODES.get(rcode, str(rcode)) for rcode in expected.rcodes)
        raise ProbeFailed(DownReason.BAD_STATUS, f"{said}, expected {wanted}")
    return said


async def _answer_to(identifier: int, datagram: Datagram) -> bytes:
    """The first datagram with this identifier: others may be forged or belong to whoever had the port before."""
    wanted = identifier.to_bytes(2, "big")
    while (data := await datagram.recv())[:2] != wanted:
        continue
    return data
