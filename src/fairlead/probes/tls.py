# SPDX-License-Identifier: Apache-2.0
"""The ``tls`` probe: a completed handshake passes; and TLS over a stream, without a socket, for ``https``.

Verification is off unless asked for: the probe asks whether the server lives, not who it is.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from fairlead.errors import MalformedPacket
from fairlead.model.health import ProbeTarget
from fairlead.model.pool import TlsSettings
from fairlead.model.reasons import DownReason
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import Passed, ProbeFailed, printable
from fairlead.probes.stream import CHUNK_BYTES, Destination, TcpStream, destination
from fairlead.protocols.x509 import not_after

T = TypeVar("T")


async def tls(target: ProbeTarget, deadline: Deadline) -> Passed:
    """Connect and complete a TLS handshake.

    Raises:
        ProbeFailed: No connection, no handshake, or a certificate that is not accepted.
    """
    to = destination(target)
    settings = target.monitor.tls or TlsSettings()
    context = client_context(settings, ())
    stream = TcpStream(to, deadline)
    try:
        await stream.connect()
        secure = TlsStream(stream, context, server_name(settings, None, to), deadline)
        await secure.handshake()
        return Passed(secure.version, secure.certificate_until)
    finally:
        stream.close()


def client_context(settings: TlsSettings, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """How to shake hands; made once per settings and version of the files they name.

    Raises:
        ProbeFailed: LOCAL_ERROR, a file cannot be used.
    """
    files = _Files(
        _version("ca_file", settings.ca_file if settings.verify else None),
        _version("certificate", settings.certificate),
        _version("certificate_key", settings.key),
    )
    return _context(settings.verify, files, alpn)


class _File(NamedTuple):
    """A file and its present version: a renewed one is read again."""

    path: str
    version: tuple[int, int, int]


class _Files(NamedTuple):
    authorities: _File | None
    certificate: _File | None
    key: _File | None


def _version(key: str, path: str | None) -> _File | None:
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError as error:
        raise _unusable(key, path, error) from error
    return _File(path, (found.st_mtime_ns, found.st_size, found.st_ino))


def _unusable(key: str, path: str, error: OSError) -> ProbeFailed:
    """``error``, an ssl.SSLError included, as trouble of this node."""
    why = error.strerror or str(error)
    return ProbeFailed(DownReason.LOCAL_ERROR, f"this node: {key} {path}: {printable(why)}")


@lru_cache(maxsize=64)
def _context(verify: bool, files: _Files, alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")  # a weak key is no sign of death
    elif files.authorities is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(files.authorities.path)
        except OSError as error:
            raise _unusable("ca_file", files.authorities.path, error) from error
    if files.certificate is not None:
        key = None if files.key is None else files.key.path
        try:
            # An empty password: a key that needs one is an error, never a question on a terminal.
            context.load_cert_chain(files.certificate.path, key, password=b"")
        except OSError as error:
            raise _unusable("certificate", files.certificate.path, error) from error
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class TlsStream:
    """TLS through memory over ``stream``; the caller closes ``stream``."""

    __slots__ = ("_deadline", "_incoming", "_outgoing", "_stream", "_tls")

    def __init__(self, stream: TcpStream, context: ssl.SSLContext, server_name: str, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # An address is matched against the certificate but not sent as SNI (RFC 6066 section 3): ssl sees to both.
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)

    @property
    def version(self) -> str:
        """Version of the protocol agreed on."""
        return self._tls.version() or "TLS"

    @property
    def certificate_until(self) -> float | None:
        """End of the server's certificate in seconds since the Unix epoch; None when it cannot be read."""
        certificate = self._tls.getpeercert(binary_form=True)
        try:
            return not_after(certificate) if certificate else None
        except MalformedPacket:
            return None

    async def handshake(self) -> None:
        """Shake hands.

        Raises:
            ProbeFailed: It did not come about.
        """
        self._deadline.doing = "TLS handshake"
        while True:
            try:
                _tried(self._tls.do_handshake)
            except ssl.SSLWantReadError:
                if not await self._receive():
                    raise ProbeFailed(DownReason.CLOSED, "TLS handshake: the server closed the connection") from None
            else:
                return await self._flush()

    async def send(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises:
            ProbeFailed: The connection failed or the deadline passed.
        """
        _tried(lambda: self._tls.write(data))
        await self._flush()

    async def recv(self) -> bytes:
        """The next bytes; empty when the server has closed, with ``close_notify`` or without.

        Raises:
            ProbeFailed: The connection failed, the deadline passed, or what came is not TLS.
        """
        while True:
            try:
                return _tried(lambda: self._tls.read(CHUNK_BYTES))
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                if not await self._receive():
                    return b""

    async def _receive(self) -> bool:
        await self._flush()
        data = await self._stream.recv()
        self._incoming.write(data)
        return bool(data)

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._stream.send(data)


def _tried(step: Callable[[], T]) -> T:
    """``step`` with the errors of OpenSSL told in our words; wishes to read and the orderly end pass through."""
    try:
        return step()
    except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
        raise
    except ssl.SSLCertVerificationError as error:
        raise ProbeFailed(
            DownReason.CERTIFICATE, f"certificate: {printable(error.verify_message).rstrip('.')}"
        ) from error
    except ssl.SSLError as error:
        why = (error.reason or "failed").lower().replace("_", " ")
        raise ProbeFailed(DownReason.TLS_FAILED, f"TLS: {printable(why)}") from error
    except ValueError as error:  # a certificate that breaks the parser
        raise ProbeFailed(DownReason.TLS_FAILED, f"TLS: {printable(str(error))}") from error


def server_name(settings: TlsSettings, host: str | None, to: Destination) -> str:
    """Whom to ask for and to expect: as set, else the Host header without its port, else the address."""
    if settings.server_name is not None:
        return settings.server_name
    if host is None:
        return to.name
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name or to.name
