# SPDX-License-Identifier: Apache-2.0
"""The ``udp`` probe: the first answer holds the expected bytes; if none are expected, silence passes too."""

from __future__ import annotations

from fairlead.model.health import ProbeTarget
from fairlead.model.pool import UdpExpectation
from fairlead.model.reasons import DownReason
from fairlead.probes.datagram import Datagram
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import ProbeFailed, printable
from fairlead.probes.stream import destination


async def udp(target: ProbeTarget, deadline: Deadline) -> str:
    """Send one datagram and wait for the answer.

    Raises:
        ProbeFailed: No answer, not the expected one, or an ICMP error.
    """
    expected = target.monitor.udp or UdpExpectation()
    deadline.doing = "answer"
    datagram = Datagram(destination(target), deadline)
    try:
        datagram.send(expected.send)
        answer = await datagram.recv()
    except ProbeFailed as failure:
        if failure.reason is DownReason.TIMEOUT and expected.expect is None:
            return "no answer and no error"
        raise
    finally:
        datagram.close()
    if expected.expect is not None and expected.expect not in answer:
        raise ProbeFailed(
            DownReason.BAD_BODY, f'answered "{printable(answer, 40)}", without "{printable(expected.expect, 40)}"'
        )
    return f'answered "{printable(answer, 40)}"'
