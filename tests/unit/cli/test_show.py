# SPDX-License-Identifier: Apache-2.0
"""What ``fairlead show`` prints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.cli import show as showing
from fairlead.cli.client import Client
from fairlead.cli.exits import NoDaemon
from fairlead.model.views import FlowView
from support.api import Serving, server_view
from support.cli import PROGRAM, environment, invoke
from support.wait import until


def show(daemon: Serving, *arguments: str) -> str:
    result = invoke("show", *arguments, "--socket", str(daemon.socket))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


@pytest.fixture(autouse=True)
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_075.0)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_show_alone_reads_like_ipvsadm(daemon: Serving) -> None:
    daemon.facade.servers_by_key["web/web-2"] = dataclasses.replace(
        daemon.facade.servers_by_key["web/web-2"],
        admin="drain", effective_weight=0, idle_reason="drain", drain_deadline_at=1_700_000_375.0,
    )  # fmt: skip
    assert show(daemon) == (
        "Prot LocalAddress:Port  Scheduler        ActiveConn Total State    Service\n"
        "  -> RemoteAddress:Port Forward   Weight ActiveConn Total Health   Server\n"
        "TCP  127.0.0.1:8080     maglev                   24  3000 degraded web (no_server 3, denied 1)\n"
        "     [::1]:8080\n"
        "  -> 127.0.0.1:9001     Proxy          1         12  1500 up       web-1\n"
        "  -> 127.0.0.1:9002     Proxy        0/2         12  1500 up       web-2: drain (5m00s left)\n"
        "  -> 127.0.0.1:9003     Proxy        0/1          0  1500 down     127.0.0.1:9003: refused"
        " (connection refused)\n"
    )


def test_services(daemon: Serving) -> None:
    assert show(daemon, "services") == (
        "Service Listen                     Pool Scheduler Forward         State    Mode    Up  Active Total     In"
        "    Out Rejected\n"
        "web     127.0.0.1:8080, [::1]:8080 web  maglev    proxy/userspace degraded forward 2/3     24  3000 8.0KiB"
        " 9.5MiB (no_server 3, denied 1)\n"
    )


def test_servers(daemon: Serving) -> None:
    daemon.facade.servers_by_key = {
        "web/web-1": server_view("web-1", 9001, max_connections=1000, health="none"),
        "web/old": server_view("old", 9004, effective_weight=0, idle_reason="removed", weight=0, health="down",
                               down_reason="bad_status", detail="status 503"),
    }  # fmt: skip
    assert show(daemon, "servers") == (
        "Server    Address        Weight Admin Health Since Active  Max Total Failed     In    Out Why\n"
        "web/web-1 127.0.0.1:9001      1 ready -      1m15s     12 1000  1500      2 4.0KiB 4.8MiB\n"
        "web/old   127.0.0.1:9004      0 ready down   1m15s     12    -  1500      2 4.0KiB 4.8MiB removed, bad_status"
        " (status 503)\n"
    )


def test_health(daemon: Serving) -> None:
    lines = show(daemon, "health").splitlines()
    assert lines[0] == "Address        Through Type Pools Verdict Since Streak Probes Failures Last  Took  Why"
    assert lines[3] == (
        "127.0.0.1:9003 -       http web   down    1m15s      0      9        1 1m06s 1.2ms "
        "refused (connection refused)"
    )
    assert len(lines) == 4


def test_status(daemon: Serving) -> None:
    assert show(daemon, "status") == (
        "fairlead      0.1.0, process 100\n"
        "up            1m15s\n"
        "configuration /etc/fairlead/fairlead.yaml\n"
        f"digest        {'ab' * 16}\n"
        "loaded        1m14s ago, ok\n"
        "in step       yes\n"
        "drift repairs 3\n"
        "worker 0      process 101, 12 connections, accepting, descriptors 40/1024, 0 pauses\n"
        "worker 1      process 102, 0 connections, accepting, descriptors 16/1024, 1 pauses\n"
    )


def test_events(daemon: Serving) -> None:
    assert show(daemon, "events").splitlines()[:2] == [
        "Time                Kind      Subject   Message",
        "2023-11-14 22:13:20 server_up web/web-1 probe passed",
    ]


def test_connections(daemon: Serving) -> None:
    lines = show(daemon, "connections").splitlines()
    assert len(lines) == 251
    assert lines[0] == "Service Client            Vip            Server    State         Age Idle   In  Out Worker"
    assert lines[3] == "web     203.0.113.77:1026 127.0.0.1:8080 web/web-1 established 1m02s 0.2s   2B   4B 0"
    assert show(daemon, "connections", "--server", "web/web-2").splitlines() == [
        "Service Client Vip Server State Age Idle In Out Worker"
    ]


@pytest.mark.parametrize("what", ["services", "servers", "health"])
def test_json_and_yaml_carry_what_the_api_answers(daemon: Serving, what: str) -> None:
    answered = daemon.ask("GET", f"/v1/{what}")[1]
    assert isinstance(answered, list)
    assert json.loads(show(daemon, what, "-o", "json")) == answered
    assert yaml.safe_load(show(daemon, what, "-o", "yaml")) == answered


def test_json_of_the_rest(daemon: Serving) -> None:
    assert json.loads(show(daemon, "-o", "json")) == daemon.ask("GET", "/v1/services")[1]
    assert json.loads(show(daemon, "status", "-o", "json")) == daemon.ask("GET", "/v1/status")[1]
    assert json.loads(show(daemon, "events", "-o", "json")) == daemon.ask("GET", "/v1/events")[1]
    flows = json.loads(show(daemon, "connections", "-o", "json", "--service", "web"))
    assert flows == [dataclasses.asdict(flow) for flow in daemon.facade.flows]
    assert yaml.safe_load(show(daemon, "connections", "-o", "yaml")) == flows
    for output in ("json", "yaml"):
        assert yaml.safe_load(show(daemon, "connections", "-o", output, "--server", "web/web-2")) == []


def test_lists_of_any_length(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.cli.client.PAGE", 100)
    monkeypatch.setattr("fairlead.cli.show.PAGE", 100)
    for _ in range(297):
        daemon.facade.add_event("tick", "", "")
    assert len(json.loads(show(daemon, "events", "-o", "json"))) == 300
    for output in ("json", "yaml"):
        daemon.facade.flow_pages = 0
        assert len(yaml.safe_load(show(daemon, "connections", "-o", output))) == 250
        assert daemon.facade.flow_pages == 3
    lines = show(daemon, "connections").splitlines()
    assert len(lines) == 251
    assert len({line.index("web/web-1") for line in lines[1:]}) == 1


def test_pages_are_asked_for_when_they_are_wanted(daemon: Serving) -> None:
    """A reader that has seen enough spares the workers the rest."""
    flow = daemon.facade.flows[0]
    daemon.facade.flows = tuple(dataclasses.replace(flow, bytes_in=n) for n in range(50_000))
    process = subprocess.Popen(
        [*PROGRAM, "show", "connections", "--socket", daemon.socket], stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 141
    assert 1 <= daemon.facade.flow_pages < 20


def test_a_server_cannot_drive_the_terminal(daemon: Serving) -> None:
    """The detail of a failed probe is the server's own text."""
    hostile = "HTTP \x1b]0;owned\x07\x1b[2J\r\n\u202e503 \udcff é"
    daemon.facade.servers_by_key["web/web-1"] = server_view(
        "web-1", 9001, health="down", down_reason="malformed", detail=hostile
    )
    for what in ((), ("servers",), ("health",)):
        shown = show(daemon, *what)
        assert "malformed (HTTP ?]0;owned??[2J  ?503 ? é)" in shown
    assert json.loads(show(daemon, "servers", "-o", "json"))[0]["detail"] == hostile
    assert "\x1b" not in show(daemon, "servers", "-o", "json")
    daemon.facade.servers_by_key["web/web-1"] = server_view("web-1", 9001, detail=hostile.replace("\udcff", ""))
    assert "\x1b" not in show(daemon, "servers", "-o", "yaml")


@contextlib.contextmanager
def terminal(daemon: Serving, *arguments: str, **extra: str) -> Iterator[list[str]]:
    """The program on a terminal of 100 columns and 12 lines; the list grows by what it writes."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "show", *arguments, "--socket", daemon.socket],
        stdin=slave, stdout=slave, stderr=slave,
        env=environment(TERM="xterm", COLUMNS="100", LINES="12", **extra),
    )  # fmt: skip
    os.close(slave)
    os.set_blocking(master, False)
    screen = Screen(master, process)
    try:
        yield screen.read()
    finally:
        process.kill()
        process.wait()
        os.close(master)


class Screen:
    """What a terminal was sent."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.descriptor, self.process = descriptor, process

    def read(self) -> list[str]:
        """Everything up to the end of the process, or up to its second picture."""
        sent = b""

        def enough() -> bool:
            nonlocal sent
            ended = self.process.poll() is not None
            with contextlib.suppress(OSError):
                while chunk := os.read(self.descriptor, 65536):
                    sent += chunk
            return ended or sent.count(b"\x1b[J") >= 2

        until(enough, 20, "the program has written")
        return sent.decode().split("\x1b[J")


def test_colour_on_a_terminal_only(daemon: Serving) -> None:
    with terminal(daemon) as pictures:
        assert "\x1b[32mup" in pictures[0]
        assert "\x1b[31mdown" in pictures[0]
        plain = re.sub(r"\x1b\[\d*m", "", pictures[0]).replace("\r\n", "\n")
        assert plain == show(daemon)
    with terminal(daemon, NO_COLOR="1") as pictures:
        assert "\x1b" not in pictures[0]
        assert pictures[0].replace("\r\n", "\n") == show(daemon)


def test_watch_redraws_a_terminal(daemon: Serving) -> None:
    daemon.facade.servers_by_key |= {f"web/{n}": server_view(f"n{n}", 10_000 + n, detail="d" * 200) for n in range(20)}
    with terminal(daemon, "--watch", NO_COLOR="1") as pictures:
        first, second = pictures[0].split("\r\n"), pictures[1].split("\r\n")
    assert first[0].startswith("\x1b[H\x1b[2JProt ")
    assert second[0].startswith("\x1b[HProt ")
    lines = [line.removesuffix("\x1b[K") for line in second[1:]]
    assert lines[-2:] == ["... 17 more lines", ""]
    assert len(second) == 12
    assert all(len(line) <= 100 for line in lines)


class ScriptedClient(Client):
    """Answers from a list; an error in it is raised, and its end interrupts."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(Path("/nowhere"))
        self.answers = list(answers)
        self.asked: list[Any] = []

    def get(self, target: str, query: Mapping[str, Any] | None = None) -> Any:
        self.asked.append((target, query))
        if not self.answers:
            raise KeyboardInterrupt
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only by waiting."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(waited))
    return waited


def watched(client: ScriptedClient, what: str, output: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(KeyboardInterrupt):
        showing.watch(client, showing.Question(what, output))
    return capsys.readouterr().out


def test_watch_gives_one_line_per_change(pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    answers = [[{"a": 1}], [{"a": 1}], [{"a": 2}], [{"a": 2}], [{"a": 1}]]
    assert watched(ScriptedClient(*answers), "servers", "json", capsys) == '[{"a": 1}]\n[{"a": 2}]\n[{"a": 1}]\n'
    assert pauses == [1.0] * 5
    documents = watched(ScriptedClient(*answers), "servers", "yaml", capsys)
    assert list(yaml.safe_load_all(documents)) == [[{"a": 1}], [{"a": 2}], [{"a": 1}]]


def test_watch_outlives_a_restart_but_not_the_daemon(pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    away = NoDaemon("no daemon answers")
    client = ScriptedClient([1], away, away, away, [2])
    assert watched(client, "servers", "json", capsys) == "[1]\n[2]\n"
    with pytest.raises(NoDaemon):
        showing.watch(ScriptedClient(away, [1]), showing.Question("servers", "json"))
    pauses.clear()
    with pytest.raises(NoDaemon):
        showing.watch(ScriptedClient([1], *[away] * 100), showing.Question("servers", "json"))
    assert 10 < sum(pauses) < 14


def test_watch_of_events_prints_each_once(pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    def event(number: int) -> dict[str, Any]:
        return {"id": number, "at": 0, "kind": "tick", "subject": "s", "message": "m"}

    full = [event(number) for number in range(1, 1001)]
    client = ScriptedClient(full, [event(1001)], [], NoDaemon("away"), [event(1)], [])
    lines = watched(client, "events", "json", capsys).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [*range(1, 1002), 1]
    assert [query["after"] for _, query in client.asked] == [0, 1000, 1001, 1001, 1001, 1, 1]
    assert len(pauses) == 5
    table = watched(ScriptedClient([event(1)], [event(2)]), "events", "table", capsys).splitlines()
    assert [line.split()[0] for line in table] == ["Time", "1970-01-01", "1970-01-01"]


def test_watch_through_a_pipe_repeats_the_table(pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = watched(ScriptedClient([], []), "servers", "table", capsys)
    pictures = shown.split("\n\n")
    assert len(pictures) == 2
    assert all(picture.startswith("Server Address") for picture in pictures)


def watching(daemon: Serving, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, "show", *arguments, "--watch", "--socket", daemon.socket],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def test_watch_of_a_daemon(daemon: Serving) -> None:
    process = watching(daemon, "servers", "-o", "json")
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline())
        daemon.facade.servers_by_key["web/web-1"] = server_view("web-1", 9001, active=99)
        second = json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()
    assert (first[0]["active"], second[0]["active"]) == (12, 99)


def test_watch_of_connections_takes_all_pages(daemon: Serving) -> None:
    flow = FlowView("web", "web/web-1", "[2001:db8::1]:9", "127.0.0.1:8080", "established", 1, 1, 0, 0, 1)
    daemon.facade.flows = (flow,) * 1500
    process = watching(daemon, "connections", "-o", "json")
    assert process.stdout is not None
    try:
        assert len(json.loads(process.stdout.readline())) == 1500
    finally:
        process.kill()
        process.communicate()
