# SPDX-License-Identifier: Apache-2.0
"""The ``tcp`` probe: a completed handshake passes."""

from __future__ import annotations

from fairlead.model.health import ProbeTarget
from fairlead.probes.deadline import Deadline
from fairlead.probes.stream import TcpStream, destination


async def tcp(target: ProbeTarget, deadline: Deadline) -> str:
    """Connect and abort.

    Raises:
        ProbeFailed: No connection.
    """
    stream = TcpStream(destination(target), deadline)
    try:
        await stream.connect()
    finally:
        stream.close()
    return "connected"
