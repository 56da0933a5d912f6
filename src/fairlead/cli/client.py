# SPDX-License-Identifier: Apache-2.0
"""Asks the daemon over its unix socket.

Invariant: whatever goes wrong on the way comes out as a FairleadError that says which socket was tried.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fairlead.cli.exits import NoDaemon
from fairlead.errors import ConfigError, Conflict, FairleadError, NotFound, Problem

TIMEOUT_S = 30.0
PAGE = 1000


class Client:
    """One daemon, by its socket. Each request has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, target: str, query: Mapping[str, Any] | None = None) -> Any:
        """The decoded body of a GET."""
        return self._ask("GET", target, query, None)

    def send(self, method: str, target: str, query: Mapping[str, Any], body: Mapping[str, Any] | None) -> Any:
        """The decoded body of the answer to a write.

        Raises:
            NotFound, Conflict, ConfigError: As the daemon raised it.
            FairleadError: It refused for another reason.
        """
        return self._ask(method, target, query, body)

    def connections(self, service: str | None, server: str | None) -> Iterator[list[dict[str, Any]]]:
        """Connections page by page; the next one is asked for when it is wanted."""
        cursor: str | None = None
        while True:
            query = {"service": service, "server": server, "cursor": cursor, "limit": PAGE}
            page = self.get("/v1/connections", query)
            yield page["flows"]
            cursor = page["cursor"]
            if cursor is None:
                return

    def events(self, after: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Events that came after the one with id ``after``, page by page."""
        while page := self.event_page(after):
            yield page
            after = page[-1]["id"]
            if len(page) < PAGE:
                return

    def event_page(self, after: int) -> list[dict[str, Any]]:
        """The oldest events after the one with id ``after``, at most ``PAGE``."""
        page: list[dict[str, Any]] = self.get("/v1/events", {"after": after, "limit": PAGE})
        return page

    def _ask(self, method: str, target: str, query: Mapping[str, Any] | None, body: Mapping[str, Any] | None) -> Any:
        given = {key: value for key, value in (query or {}).items() if value is not None}
        if given:
            target += "?" + urlencode(given, errors="surrogateescape")
        headers = {"Accept": "application/json", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = _Connection(self._path)
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            # Closed here and not by its finalizer, in which Ctrl-C would be lost: Python ignores what is raised there.
            with contextlib.closing(connection.getresponse()) as response:
                content = response.read()
        except TimeoutError:
            raise NoDaemon(f"the daemon at {self._path} did not answer within {TIMEOUT_S:g} s") from None
        except OSError as error:
            raise self._unreachable(error) from None
        except http.client.HTTPException:
            raise self._stranger() from None
        finally:
            connection.close()
        try:
            decoded = json.loads(content)
        except ValueError:
            raise self._stranger() from None
        if response.status >= http.client.BAD_REQUEST:
            raise _refused(decoded) if isinstance(decoded, dict) else self._stranger()
        return decoded

    def _unreachable(self, error: OSError) -> FairleadError:
        if isinstance(error, PermissionError):
            return FairleadError(
                f"no permission to open {self._path}; run the command as root (sudo), or join the group of the socket"
            )
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return NoDaemon(
                f"no daemon answers on {self._path}; start one with 'fairlead run FILE', "
                "or name its socket with --socket PATH or FAIRLEAD_SOCKET"
            )
        return NoDaemon(f"the daemon at {self._path} did not answer: {error.strerror or error}")

    def _stranger(self) -> NoDaemon:
        return NoDaemon(f"what answers on {self._path} is not fairlead; name the socket of a daemon with --socket PATH")


def server_target(key: str) -> str:
    """The resource of a server."""
    return "/v1/servers/" + quote(key, safe="/:[]", errors="surrogateescape")


def explain_target(protocol: str, client: str, vip: str) -> str:
    """Where a flow is explained; both ends as ADDRESS:PORT."""
    return f"/v1/explain/{protocol}/{quote(client, safe='')}/{quote(vip, safe='')}"


def vip_target(vip: str, action: str) -> str:
    """The resource that moves a VIP; its prefix length may be left out."""
    return f"/v1/vips/{quote(vip.partition('/')[0], safe=':[]', errors='surrogateescape')}/{action}"


class _Connection(http.client.HTTPConnection):
    """HTTP/1.1 over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def _refused(problem: Mapping[str, Any]) -> FairleadError:
    detail = str(problem.get("detail") or problem.get("title") or "the daemon refused")
    match problem.get("reason"):
        case "invalid_configuration":
            findings = problem.get("problems") or []
            return ConfigError(tuple(Problem(**finding) for finding in findings))
        case "not_found":
            return NotFound(detail)
        case "conflict":
            return Conflict(detail)
        case _:
            return FairleadError(detail)
