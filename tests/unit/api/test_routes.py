# SPDX-License-Identifier: Apache-2.0
"""Every route, every refusal, over a real unix socket."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from http import HTTPStatus
from typing import Any

import pytest

from fairlead.api import app as api_app
from fairlead.api.peer import Peer
from fairlead.api.problems import Reason
from fairlead.api.routes import OPERATIONS
from fairlead.errors import (
    ConfigError,
    Conflict,
    ContractViolation,
    DataPlaneError,
    FairleadError,
    NotFound,
    Problem,
    UnsupportedFeature,
)
from fairlead.model.pool import AdminState
from fairlead.model.views import ChangeResult
from support.api import CLIENT, FakeFacade, Serving, UnixConnection, server_view

SERVER = "/v1/servers/web/web-1"


def problem(answer: tuple[int, Any, Any], status: int, reason: Reason) -> dict[str, Any]:
    """The problem in ``answer``, checked against RFC 9457 and what was expected."""
    got, body, response = answer
    assert (got, body.get("reason")) == (status, reason), body
    assert response.headers["content-type"] == "application/problem+json"
    assert (body["type"], body["status"], body["title"]) == ("about:blank", status, HTTPStatus(status).phrase)
    assert isinstance(body["detail"], str)
    assert "Traceback" not in body["detail"]
    return dict(body)


def test_views_arrive_field_by_field(daemon: Serving) -> None:
    facade = daemon.facade
    for target, expected in (
        ("/v1/status", facade.status()),
        ("/v1/services", daemon.run(facade.services())),
        ("/v1/services/web", daemon.run(facade.services())[0]),
        ("/v1/servers", daemon.run(facade.servers())),
        ("/v1/servers/web/127.0.0.1:9003", facade.servers_by_key["web/127.0.0.1:9003"]),
        ("/v1/health", facade.health()),
        ("/v1/events", facade.events(0, 100)),
    ):
        status, body, response = daemon.ask("GET", target)
        plain = (
            [dataclasses.asdict(item) for item in expected]
            if isinstance(expected, tuple)
            else dataclasses.asdict(expected)
        )
        assert (status, body) == (200, json.loads(json.dumps(plain))), target
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"


def test_every_route_answers(daemon: Serving) -> None:
    """None of the table is left out by the other tests, and HEAD works wherever GET does."""
    reads = [operation for operation in OPERATIONS if operation.method == "GET"]
    assert len(reads) == 15
    for operation in reads:
        target = operation.path.replace("{name}", "web").replace("{key:path}", "web/web-1")
        target = target.replace("{protocol}/{client}/{vip}", "tcp/192.0.2.1:4000/192.0.2.10:80")
        status, body, _ = daemon.ask("HEAD", target)
        assert (status, body) == (200, ""), target
        if operation.name != "event_stream":
            assert daemon.ask("GET", target)[0] == 200, target


def test_connections_filter_and_page(daemon: Serving) -> None:
    status, body, _ = daemon.ask("GET", "/v1/connections?limit=100&service=web")
    assert (status, len(body["flows"]), body["cursor"]) == (200, 100, "100")
    assert body["flows"][0]["client"] == f"{CLIENT}:1024"
    rest = daemon.ask("GET", f"/v1/connections?limit=1000&cursor={body['cursor']}")[1]
    assert (len(rest["flows"]), rest["cursor"]) == (150, None)
    assert daemon.ask("GET", "/v1/connections?server=web/web-2")[1]["flows"] == []
    problem(daemon.ask("GET", "/v1/connections?service=wob"), 404, Reason.NOT_FOUND)
    problem(daemon.ask("GET", "/v1/connections?cursor=x"), 409, Reason.CONFLICT)


def test_events_after_an_id(daemon: Serving) -> None:
    assert [event["id"] for event in daemon.ask("GET", "/v1/events?after=1&limit=1")[1]] == [2]
    assert daemon.ask("GET", "/v1/events?after=3")[1] == []
    from_an_earlier_run = daemon.ask("GET", "/v1/events?after=900")[1]
    assert [event["id"] for event in from_an_earlier_run] == [1, 2, 3]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("limit=0", "1 to 1000"),
        ("limit=1001", "1 to 1000"),
        ("limit=-1", "1 to 1000"),
        ("limit=1e2", "1 to 1000"),
        ("limit=%D9%A3", "1 to 1000"),
        ("limit=" + "9" * 5000, "1 to 1000"),
        ("after=", "a whole number"),
        ("after=1&after=2", "twice"),
    ],
)
def test_bad_query_values(daemon: Serving, query: str, names: str) -> None:
    assert names in problem(daemon.ask("GET", f"/v1/events?{query}"), 400, Reason.BAD_VALUE)["detail"]


def test_unknown_query_keys_name_the_allowed(daemon: Serving) -> None:
    said = problem(daemon.ask("GET", "/v1/events?aftr=1"), 400, Reason.UNKNOWN_KEY)
    assert said["allowed"] == ["after", "limit"]
    assert "after, limit" in said["detail"]
    assert problem(daemon.ask("GET", "/v1/status?x=1"), 400, Reason.UNKNOWN_KEY)["detail"].endswith("allowed: none")


def test_unknown_names_are_met_with_near_ones(daemon: Serving) -> None:
    assert "web/web-1" in problem(daemon.ask("GET", "/v1/servers/web/web-9"), 404, Reason.NOT_FOUND)["detail"]
    assert "did you mean web" in problem(daemon.ask("GET", "/v1/services/wbe"), 404, Reason.NOT_FOUND)["detail"]
    assert "/v1/status" in problem(daemon.ask("GET", "/v1/statsu"), 404, Reason.NOT_FOUND)["detail"]
    assert "/v1/openapi.json" in problem(daemon.ask("GET", "/nothing"), 404, Reason.NOT_FOUND)["detail"]
    problem(daemon.ask("GET", "/v1/status/"), 404, Reason.NOT_FOUND)


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/v1/status", ["GET", "HEAD"]),
        ("DELETE", SERVER, ["GET", "HEAD", "PATCH"]),
        ("GET", "/v1/reload", ["POST"]),
        ("OPTIONS", "/events", ["GET", "HEAD"]),
        ("CONNECT", "/metrics", ["GET", "HEAD"]),
    ],
)
def test_wrong_methods_name_the_right_ones(daemon: Serving, method: str, target: str, allowed: list[str]) -> None:
    answer = daemon.ask(method, target)
    assert problem(answer, 405, Reason.METHOD_NOT_ALLOWED)["allowed"] == allowed
    assert answer[2].headers["allow"] == ", ".join(allowed)


@pytest.mark.parametrize(
    ("change", "written"),
    [
        ({"admin": "drain"}, (AdminState.DRAIN, None)),
        ({"weight": 3}, (None, 3)),
        ({"weight": 0, "admin": "maint"}, (AdminState.MAINT, 0)),
        ({"admin": None, "weight": 65535}, (None, 65535)),
    ],
)
def test_a_server_is_changed(daemon: Serving, change: dict[str, Any], written: tuple[Any, Any]) -> None:
    status, body, _ = daemon.ask("PATCH", SERVER, change)
    assert status == 200
    assert body["changes"]
    assert daemon.facade.writes == [("web/web-1", *written)]


def test_dry_run_changes_nothing(daemon: Serving) -> None:
    status, body, _ = daemon.ask("PATCH", SERVER + "?dry_run=true", {"admin": "drain"})
    assert (status, body) == (200, {"changes": ["web/web-1: ready -> drain"]})
    status, body, _ = daemon.ask("POST", "/v1/reload?dry_run=true")
    assert (status, len(body["changes"])) == (200, 1)
    assert daemon.facade.writes == []
    problem(daemon.ask("POST", "/v1/reload?dry_run=yes"), 400, Reason.BAD_VALUE)
    assert daemon.ask("POST", "/v1/reload?dry_run=false")[0] == 200
    assert daemon.facade.writes == [("reload",)]


@pytest.mark.parametrize(
    ("body", "reason", "names"),
    [
        (b"", Reason.MALFORMED, '"admin"'),
        (b"{", Reason.MALFORMED, '"weight"'),
        (b"\xff\xfe", Reason.MALFORMED, "JSON"),
        (b'{"weight": NaN}', Reason.MALFORMED, "JSON"),
        (b"[" * 60000, Reason.MALFORMED, "JSON"),
        (b'{"weight": ' + b"1" * 5000 + b"}", Reason.MALFORMED, "out of range"),
        (b"[]", Reason.BAD_VALUE, "object"),
        (b'"drain"', Reason.BAD_VALUE, "object"),
        (b"{}", Reason.BAD_VALUE, "admin, weight"),
        (b'{"admin": "stop"}', Reason.BAD_VALUE, "'ready', 'drain' or 'maint'"),
        (b'{"weight": "3"}', Reason.BAD_VALUE, "weight"),
        (b'{"weight": true}', Reason.BAD_VALUE, "weight"),
        (b'{"weight": 1.5}', Reason.BAD_VALUE, "weight"),
        (b'{"weight": -1}', Reason.BAD_VALUE, "greater than or equal to 0"),
        (b'{"weight": 65536}', Reason.BAD_VALUE, "65535"),
        (b'{"wieght": 1}', Reason.UNKNOWN_KEY, "admin, weight"),
        (b'{"admin": "drain", "address": "x"}', Reason.UNKNOWN_KEY, "admin, weight"),
    ],
)
def test_bad_bodies(daemon: Serving, body: bytes, reason: Reason, names: str) -> None:
    assert names in problem(daemon.ask("PATCH", SERVER, body), 400, reason)["detail"]
    assert daemon.facade.writes == []


def test_bodies_are_capped(daemon: Serving) -> None:
    fits = b'{"weight": 5' + b" " * (api_app.MAX_BODY - 13) + b"}"
    assert len(fits) == api_app.MAX_BODY
    assert daemon.ask("PATCH", SERVER, fits)[0] == 200
    problem(daemon.ask("PATCH", SERVER, fits + b" "), 413, Reason.TOO_LARGE)
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    head = b"PATCH " + SERVER.encode() + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    assert daemon.raw(head + chunk * 17 + b"0\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_bodies_are_json_or_absent(daemon: Serving) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    said = problem(daemon.ask("PATCH", SERVER, b"weight=3", form), 415, Reason.MEDIA_TYPE)
    assert said["allowed"] == ["application/json"]
    merge = {"content-type": "application/merge-patch+json; charset=utf-8"}
    assert daemon.ask("PATCH", SERVER, {"weight": 3}, merge)[0] == 200
    problem(daemon.ask("POST", "/v1/reload", {"dry_run": True}), 400, Reason.BAD_VALUE)
    problem(daemon.ask("GET", "/v1/status", b"x", {"content-type": "application/json"}), 400, Reason.BAD_VALUE)


def test_a_change_can_be_tied_to_what_was_read(daemon: Serving) -> None:
    tag = daemon.ask("GET", SERVER)[2].headers["etag"]
    assert daemon.ask("PATCH", SERVER, {"weight": 4}, {"if-match": f'"x", {tag}'})[0] == 200
    stale = daemon.ask("PATCH", SERVER, {"weight": 5}, {"if-match": tag})
    problem(stale, 412, Reason.STALE)
    assert stale[2].headers["etag"] == daemon.ask("GET", SERVER)[2].headers["etag"] != tag
    problem(
        daemon.ask("PATCH", SERVER, {"weight": 5}, {"if-match": "W/" + stale[2].headers["etag"]}), 412, Reason.STALE
    )
    problem(daemon.ask("PATCH", SERVER + "x", {"weight": 5}, {"if-match": "*"}), 404, Reason.NOT_FOUND)
    assert daemon.ask("PATCH", SERVER, {"weight": 6}, {"if-match": "*"})[0] == 200
    assert [weight for _, _, weight in daemon.facade.writes] == [4, 6]


def test_a_reload_can_be_tied_to_the_running_configuration(daemon: Serving) -> None:
    tag = daemon.ask("GET", "/v1/status")[2].headers["etag"]
    assert daemon.ask("POST", "/v1/reload", headers={"if-match": tag})[0] == 200
    daemon.facade.digest = "cd" * 16
    problem(daemon.ask("POST", "/v1/reload", headers={"if-match": tag}), 412, Reason.STALE)


def test_tags_outlive_traffic(daemon: Serving) -> None:
    """Counters change between every read and write; a tag that covered them could never be used."""
    before = daemon.ask("GET", SERVER)[2].headers["etag"]
    daemon.facade.servers_by_key["web/web-1"] = server_view("web-1", 9001, active=99, bytes_in_total=1, health="down")
    assert daemon.ask("GET", SERVER)[2].headers["etag"] == before
    daemon.facade.servers_by_key["web/web-1"] = server_view("web-1", 9001, admin="drain")
    assert daemon.ask("GET", SERVER)[2].headers["etag"] != before


class HesitantFacade(FakeFacade):
    """Lets others run between the question and the change."""

    async def set_server(
        self, key: str, *, admin: AdminState | None, weight: int | None, dry_run: bool
    ) -> ChangeResult:
        await asyncio.sleep(0.05)
        return await super().set_server(key, admin=admin, weight=weight, dry_run=dry_run)


def test_of_two_writers_with_one_tag_only_one_wins(daemon: Serving) -> None:
    daemon.facade.__class__ = HesitantFacade
    tag = daemon.ask("GET", SERVER)[2].headers["etag"]
    statuses: list[int] = []

    def write(weight: int) -> None:
        statuses.append(daemon.ask("PATCH", SERVER, {"weight": weight}, {"if-match": tag})[0])

    writers = [threading.Thread(target=write, args=(weight,)) for weight in (7, 8, 9)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(statuses) == [200, 412, 412]
    assert len(daemon.facade.writes) == 1


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NotFound("no server x; did you mean y?"), 404, Reason.NOT_FOUND),
        (Conflict("on its way out"), 409, Reason.CONFLICT),
        (UnsupportedFeature("udp", "needs a later version"), 422, Reason.UNSUPPORTED),
        (DataPlaneError("worker 0 does not answer"), 503, Reason.DATA_PLANE),
        (FairleadError("disk full"), 500, Reason.FAILED),
        (ContractViolation("a bug"), 500, Reason.FAILED),
    ],
)
def test_errors_of_the_engine(daemon: Serving, error: FairleadError, status: int, reason: Reason) -> None:
    daemon.facade.failure = error
    for method, target, body in (
        ("GET", "/v1/servers", None),
        ("PATCH", SERVER, {"weight": 3}),
        ("POST", "/v1/reload", None),
        ("GET", "/metrics", None),
    ):
        assert problem(daemon.ask(method, target, body), status, reason)["detail"] == str(error)


def test_an_invalid_configuration_lists_its_problems(daemon: Serving) -> None:
    findings = (Problem("f.yaml", 3, 5, "services.web", "unknown key"), Problem("f.yaml", 0, 0, "", "too long"))
    daemon.facade.failure = ConfigError(findings)
    said = problem(daemon.ask("POST", "/v1/reload"), 422, Reason.INVALID_CONFIGURATION)
    assert said["problems"] == [dataclasses.asdict(finding) for finding in findings]


def test_a_bug_is_answered_without_its_traceback(daemon: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.facade.failure = ZeroDivisionError("secret")
    answer = daemon.ask("GET", "/v1/services")
    assert "secret" not in json.dumps(problem(answer, 500, Reason.INTERNAL))
    assert "secret" in capsys.readouterr().out
    daemon.facade.failure = None
    assert daemon.ask("GET", "/v1/services")[0] == 200


def test_a_vip_is_moved_by_its_address(daemon: Serving) -> None:
    assert daemon.ask("POST", "/v1/vips/192.0.2.10/release?dry_run=true")[1] == {"changes": ["release 192.0.2.10/24"]}
    assert daemon.facade.writes == []
    assert daemon.ask("POST", "/v1/vips/192.0.2.10/claim")[0] == 200
    assert daemon.facade.writes == [("claim", "192.0.2.10")]
    problem(daemon.ask("POST", "/v1/vips/192.0.2.11/claim"), 404, Reason.NOT_FOUND)


def test_who_may_only_read(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.api.protocol.peer_of", lambda _: Peer(uid=4711, daemon_uid=900))
    assert daemon.ask("GET", "/v1/servers")[0] == 200
    writes = [operation for operation in OPERATIONS if operation.writes]
    assert len(writes) == 4
    for operation in writes:
        target = operation.path.replace("{key:path}", "web/web-1").replace("{address}", "192.0.2.10")
        detail = problem(
            daemon.ask(operation.method, target + "?dry_run=true", {"weight": 1}), 403, Reason.NOT_PERMITTED
        )
        assert "4711" in detail["detail"]
        assert "sudo" in detail["detail"]
        assert "900" in detail["detail"]
    assert daemon.facade.writes == []


def test_who_operates() -> None:
    assert Peer(0, 900).operates
    assert Peer(900, 900).operates
    assert not Peer(901, 900).operates


def test_liveness_and_readiness(daemon: Serving) -> None:
    assert daemon.ask("GET", "/healthz")[:2] == (200, "ok\n")
    assert daemon.ask("GET", "/readyz")[:2] == (200, "ready\n")
    daemon.facade.is_ready = False
    assert daemon.ask("GET", "/healthz")[0] == 200
    problem(daemon.ask("GET", "/readyz"), 503, Reason.NOT_READY)


def test_text_that_is_no_utf8_and_numbers_that_are_no_json(daemon: Serving) -> None:
    daemon.facade.detail = "/etc/caf\udce9"
    assert daemon.ask("GET", "/v1/status")[1]["last_reload_error"] == "/etc/caf\udce9"
    daemon.facade.servers_by_key["web/web-1"] = server_view(
        "web-1", 1, since_at=float("nan"), drain_deadline_at=float("inf")
    )
    server = daemon.ask("GET", SERVER)[1]
    assert (server["since_at"], server["drain_deadline_at"]) == (None, None)


def test_one_connection_serves_many_requests(daemon: Serving) -> None:
    connection = UnixConnection(daemon.socket)
    for target, status in (("/v1/status", 200), ("/nothing", 404), ("/v1/servers", 200), ("/healthz", 200)) * 3:
        connection.request("GET", target)
        response = connection.getresponse()
        response.read()
        assert response.status == status
        first = connection.sock
    assert connection.sock is first
    connection.close()


def test_nothing_names_the_server_software(daemon: Serving) -> None:
    headers = daemon.ask("GET", "/v1/status")[2].headers
    assert "server" not in headers
    assert "date" not in headers


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("sctp/192.0.2.1:4000/192.0.2.10:80", "'sctp' is no protocol; give tcp or udp"),
        ("tcp/192.0.2.1/192.0.2.10:80", "client: '192.0.2.1' is not ADDRESS:PORT"),
        ("tcp/192.0.2.1:4000/192.0.2.10:70000", "vip: '192.0.2.10:70000' is not ADDRESS:PORT"),
        ("tcp/2001:db8::1:80/192.0.2.10:80", "client: '2001:db8::1:80' is not ADDRESS:PORT"),
    ],
)
def test_a_flow_that_cannot_be_is_refused(daemon: Serving, target: str, says: str) -> None:
    status, body, _ = daemon.ask("GET", f"/v1/explain/{target}")
    assert status == 400
    assert says in body["detail"]
