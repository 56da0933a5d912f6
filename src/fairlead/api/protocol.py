# SPDX-License-Identifier: Apache-2.0
"""One HTTP connection: uvicorn's h11 protocol, with bounds that hold against a client that is slow, stuck or hostile.

Invariant: every connection is, at any moment, within a time limit or has a request under way in the agent
that is; only an event stream whose client keeps reading lives on.
"""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from fairlead.api.peer import Peer, peer_of
from fairlead.api.problems import MEDIA_TYPE, Reason, Refusal, encode_problem

REQUEST_S = 10.0  # for a whole request, from its first octet (the first request: from connecting) to its last
IDLE_S = 60.0  # between requests
DRAIN_S = 10.0  # for a client to take what is written for it
MAX_READERS = 64  # connections of all peers that only read
MAX_CONNECTIONS = 96  # the rest is for those that operate, so that readers cannot lock them out


class BoundedProtocol(H11Protocol):
    """The connection of one client.

    ``state.peer`` of its requests says who that is, ``state.ended`` whether it has gone or sends no more.
    """

    request_s = REQUEST_S
    drain_s = DRAIN_S

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._request_timer: asyncio.TimerHandle | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._ended = asyncio.Event()
        self.peer: Peer | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Learn who it is; refuse it when too many are open."""
        super().connection_made(transport)
        self.peer = peer_of(transport)
        self.app_state = {**self.app_state, "peer": self.peer, "ended": self._ended}
        others = [other for other in self.connections if other is not self and isinstance(other, BoundedProtocol)]
        readers = sum(1 for other in others if other.peer is not None and not other.peer.operates)
        if len(others) >= MAX_CONNECTIONS or (not self.peer.operates and readers >= MAX_READERS):
            self._refused = True
            detail = "too many connections are open; close some and try again"
            self._answer(Refusal(HTTPStatus.SERVICE_UNAVAILABLE, Reason.BUSY, detail))
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timers."""
        self._cancel_timers()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take octets; a request that has begun has until its limit to be complete."""
        if self._refused or self.transport.is_closing():
            return
        super().data_received(data)
        incomplete = self.conn.their_state in {h11.IDLE, h11.SEND_BODY}
        if self._request_timer is not None and not incomplete:
            self._request_timer.cancel()
            self._request_timer = None
        elif incomplete:
            self._expect_request()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more: what it asked for whole is answered, and the connection is closed then."""
        self._ended.set()
        if not self._is_answering() or self.conn.their_state is h11.SEND_BODY:
            self._close()
        return True

    def pause_writing(self) -> None:
        """The client takes too little."""
        super().pause_writing()
        self._expect_drained()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._drain_timer is not None and not self.transport.is_closing():
            self._drain_timer.cancel()
            self._drain_timer = None

    def on_response_complete(self) -> None:
        """One answer is written."""
        super().on_response_complete()
        if self.transport.is_closing() or (self._ended.is_set() and not self._is_answering()):
            self._close()
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._expect_request()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for ``IDLE_S`` seconds: close."""
        super().timeout_keep_alive_handler()
        self._expect_drained()

    def shutdown(self) -> None:
        """End after the request under way, or now."""
        if self._is_answering():
            self.cycle.keep_alive = False
        else:
            self._close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; called by uvicorn while it handles h11's error."""
        status = HTTPStatus(getattr(sys.exception(), "error_status_hint", HTTPStatus.BAD_REQUEST))
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            self._answer(Refusal(status, Reason.TOO_LARGE, "request line and headers are too long"))
        else:
            self._answer(Refusal(status, Reason.MALFORMED, f"{msg.rstrip('.')}; this socket speaks HTTP/1.1"))

    def _should_upgrade(self) -> bool:
        """Never: an upgrade that is not understood is ignored (RFC 9110 section 7.8)."""
        return False

    def _answer(self, refusal: Refusal) -> None:
        """Refuse outside of any request, and close; too late inside an answer that has begun."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        if self._is_answering():
            self.cycle.disconnected = True  # its operation waits for a body that will not come, and must not answer too
            self.cycle.message_event.set()
        body = encode_problem(refusal)
        headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        response = h11.Response(status_code=refusal.status, headers=headers, reason=HTTPStatus(refusal.status).phrase)
        self.transport.write(self.conn.send(response) or b"")
        self.transport.write(self.conn.send(h11.Data(body)) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self._close()

    def _is_answering(self) -> bool:
        """Whether a request is under way whose answer is not written yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _close(self) -> None:
        """Close as soon as the client has taken what is written for it."""
        self.transport.close()
        self._expect_drained()

    def _expect_request(self) -> None:
        if self._request_timer is None:
            self._request_timer = self.loop.call_later(self.request_s, self._request_late)

    def _request_late(self) -> None:
        self._request_timer = None
        if self._is_answering():
            self.transport.abort()  # the operation waits for the rest of the body
            return
        detail = f"the request was not complete after {self.request_s:g} s"
        self._answer(Refusal(HTTPStatus.REQUEST_TIMEOUT, Reason.TIMEOUT, detail))

    def _expect_drained(self) -> None:
        """Cut the connection off unless the client takes what is written for it in time."""
        if self._drain_timer is None and self.transport.get_write_buffer_size():
            self._drain_timer = self.loop.call_later(self.drain_s, self.transport.abort)

    def _cancel_timers(self) -> None:
        for timer in (self._request_timer, self._drain_timer):
            if timer is not None:
                timer.cancel()
        self._request_timer = self._drain_timer = None
