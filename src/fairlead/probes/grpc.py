# SPDX-License-Identifier: Apache-2.0
"""The ``grpc`` probe: the standard health service answers SERVING."""

from __future__ import annotations

from fairlead import __version__
from fairlead.errors import MalformedPacket
from fairlead.model.health import ProbeTarget
from fairlead.model.pool import GrpcExpectation
from fairlead.model.reasons import DownReason
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import Passed, ProbeFailed, printable
from fairlead.probes.stream import ByteStream, TcpStream, authority, destination
from fairlead.probes.tls import TlsStream, client_context, server_name
from fairlead.protocols.grpc_health import HealthAnswer, HealthCall


async def grpc(target: ProbeTarget, deadline: Deadline) -> Passed:
    """Call ``grpc.health.v1.Health/Check``, over TLS when the monitor has ``tls``.

    Raises:
        ProbeFailed: No answer, or another one than SERVING.
    """
    expected = target.monitor.grpc or GrpcExpectation()
    settings = target.monitor.tls
    to = destination(target)
    context = None if settings is None else client_context(settings, ("h2",))
    called = expected.authority or authority(to, 80 if settings is None else 443)
    call = HealthCall(
        called,
        expected.service,
        scheme="http" if settings is None else "https",
        user_agent=f"fairlead/{__version__}",
    )
    tcp = TcpStream(to, deadline)
    certificate_until = None
    try:
        await tcp.connect()
        stream: ByteStream = tcp
        if settings is not None and context is not None:
            stream = secure = TlsStream(tcp, context, server_name(settings, expected.authority, to), deadline)
            await secure.handshake()
            certificate_until = secure.certificate_until
        deadline.doing = "gRPC answer"
        answer = await _answer(stream, call)
    except MalformedPacket as error:
        raise ProbeFailed(DownReason.MALFORMED, f"gRPC answer: {error}") from error
    finally:
        tcp.close()
    said = printable(answer.detail)
    if not answer.serving:
        raise ProbeFailed(DownReason.BAD_STATUS, said)
    return Passed(said, certificate_until)


async def _answer(stream: ByteStream, call: HealthCall) -> HealthAnswer:
    while call.answer is None:
        if data := call.data_to_send():
            await stream.send(data)
        if not (data := await stream.recv()):
            raise ProbeFailed(DownReason.CLOSED, "gRPC answer: the server closed the connection before it")
        call.receive_data(data)
    return call.answer
