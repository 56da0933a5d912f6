# SPDX-License-Identifier: Apache-2.0
"""The ``agent`` probe: asks the agent on a server how much the server wants. It passes when there is an answer."""

from __future__ import annotations

from fairlead.errors import MalformedPacket
from fairlead.model.health import ProbeTarget
from fairlead.model.pool import AgentQuestion
from fairlead.model.reasons import DownReason
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import Passed, ProbeFailed, printable
from fairlead.probes.stream import TcpStream, destination
from fairlead.protocols.agent_check import AgentLine


async def agent(target: ProbeTarget, deadline: Deadline) -> Passed:
    """Connect, send what is set, read one line.

    Raises:
        ProbeFailed: There is no agent, or what it says is no answer.
    """
    question = target.monitor.agent or AgentQuestion()
    stream = TcpStream(destination(target), deadline)
    line = AgentLine()
    try:
        await stream.connect()
        deadline.doing = "agent's answer"
        if question.send:
            await stream.send(question.send)
        said = b""
        while True:
            data = await stream.recv()
            said += data
            if (report := line.receive_data(data)) is not None:
                return Passed(_shown(said), report=report)
    except MalformedPacket as error:
        raise ProbeFailed(DownReason.MALFORMED, f"agent's answer: {error}") from error
    finally:
        stream.close()


def _shown(said: bytes) -> str:
    line = printable(said.partition(b"\n")[0].strip())
    return f'said "{line}"'
