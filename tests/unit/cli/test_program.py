# SPDX-License-Identifier: Apache-2.0
"""Options, exit codes, and errors that are one line."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from fairlead import __version__
from fairlead.cli.client import Client
from fairlead.cli.local import DemoOptions, LocalVerbs, RunOptions
from fairlead.errors import ConfigError, Conflict, DataPlaneError, FairleadError
from fairlead.model.host import Finding
from fairlead.model.reasons import HostCheck, Severity
from support.api import Serving, server_view
from support.cli import FINDINGS, PROGRAM, environment, invoke, local
from support.yardstick import slowness


def raising(error: BaseException) -> LocalVerbs:
    def run(_: RunOptions) -> NoReturn:
        raise error

    return dataclasses.replace(local(), run=run)


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"fairlead {__version__}\n")


def test_help_names_every_verb_and_the_exit_codes() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("run", "demo", "check", "show", "drain", "ready", "maint", "weight", "reload", "4 no daemon answers"):
        assert word in " ".join(result.output.split())
    assert result.output.index("run ") < result.output.index("demo ") < result.output.index("check ")
    assert invoke("show", "-h").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), RunOptions(Path("/etc/fairlead/fairlead.yaml"), (), (), None)),
        (("x.yaml",), RunOptions(Path("x.yaml"), (), (), None)),
        (("--socket", "s", "x.yaml"), RunOptions(Path("x.yaml"), (), (), Path("s"))),
        (
            ("--listen", "[::1]:80", "--server", "a:1", "--server", "b:2"),
            RunOptions(None, ("[::1]:80",), ("a:1", "b:2"), None),
        ),
    ],
)
def test_run_is_handed_its_options(arguments: tuple[str, ...], options: RunOptions) -> None:
    result = invoke("run", *arguments)
    assert (result.exit_code, result.output) == (0, f"{options}\n")


def test_run_takes_the_socket_from_the_environment() -> None:
    assert "PosixPath('/e.sock')" in invoke("run", FAIRLEAD_SOCKET="/e.sock").output
    assert "PosixPath('/o.sock')" in invoke("run", "--socket", "/o.sock", FAIRLEAD_SOCKET="/e.sock").output


def test_demo_is_handed_its_options() -> None:
    assert invoke("demo").output == f"{DemoOptions('127.0.0.1:8080', 3, None)}\n"
    result = invoke("demo", "--listen", "127.0.0.1:1", "--servers", "5", "--socket", "s")
    assert result.output == f"{DemoOptions('127.0.0.1:1', 5, Path('s'))}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Usage: fairlead"),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("run", "x.yaml", "--listen", "a:1"), "either FILE, or --listen and --server"),
        (("run", "--listen", "a:1"), "belong together"),
        (("run", "--server", "a:1"), "belong together"),
        (("demo", "--servers", "0"), "0 is not in the range"),
        (("show", "servrs"), "'servrs' is not one of"),
        (("show", "-o", "xml"), "'xml' is not one of"),
        (("show", "servers", "--service", "web"), "fairlead show connections"),
        (("drain",), "Missing argument 'POOL/SERVER'"),
        (("weight", "web/a"), "Missing argument 'N'"),
        (("weight", "web/a", "65536"), "65536 is not in the range"),
        (("weight", "web/a", "much"), "'much' is not a valid integer"),
        (("reload", "--drt-run"), "--dry-run"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], says: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_check() -> None:
    result = invoke("check", "good.yaml")
    assert (result.exit_code, result.stdout) == (0, "good.yaml: valid: 0 services, 0 pools, 0 servers\n")
    result = invoke("check", "good.yaml", "-o", "json")
    assert json.loads(result.stdout) == {"file": "good.yaml", "valid": True, "problems": []}
    result = invoke("check", "bad.yaml")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "bad.yaml:3:5: services.web.listn: unknown key; did you mean `listen`?\n"
        "bad.yaml:9:1: pools: must not be empty\n"
    )
    for output, decode in (("json", json.loads), ("yaml", yaml.safe_load)):
        result = invoke("check", "bad.yaml", "-o", output)
        assert (result.exit_code, result.stderr) == (3, "")
        decoded = decode(result.stdout)
        assert decoded == {
            "file": "bad.yaml",
            "valid": False,
            "problems": [dataclasses.asdict(finding) for finding in FINDINGS],
        }


def test_doctor_lists_findings_with_their_fixes() -> None:
    result = invoke("doctor", "good.yaml")
    assert result.exit_code == 1
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["SEVERITY", "NAME", "SUBJECT", "FINDING"],
        ["error", "rp_filter", "net.ipv4.conf.eth0.rp_filter", "is", "strict"],
        ["fix:", "sysctl", "-w", "a=2"],
        ["ok", "lro", "eth0", "off"],
        ["errors:", "1,", "warnings:", "0,", "ok:", "1"],
    ]


def test_doctor_tells_scripts_what_it_was_asked_and_found() -> None:
    for arguments, role in (((), "balancer"), (("--real-server",), "real_server")):
        result = invoke("doctor", "good.yaml", "-o", "json", *arguments)
        assert (result.exit_code, result.stderr) == (1, "")
        told = json.loads(result.stdout)
        assert (told["file"], told["role"]) == ("good.yaml", role)
        assert told["findings"] == [
            {
                "name": "rp_filter",
                "severity": "error",
                "subject": "net.ipv4.conf.eth0.rp_filter",
                "message": "is strict",
                "fix": "sysctl -w a=2",
            },
            {"name": "lro", "severity": "ok", "subject": "eth0", "message": "off", "fix": None},
        ]
        assert yaml.safe_load(invoke("doctor", "good.yaml", "-o", "yaml", *arguments).stdout) == told


def test_doctor_is_asked_in_one_role_and_fails_for_errors_alone() -> None:
    asked: list[bool] = []

    def examine(_: object, as_real_server: bool) -> list[Finding]:
        asked.append(as_real_server)
        return [Finding(HostCheck.BPFFS, Severity.WARNING, "x", "y"), Finding(HostCheck.LRO, Severity.OK, "x", "y")]

    verbs = dataclasses.replace(local(), doctor=examine)
    assert invoke("doctor", "good.yaml", verbs=verbs).exit_code == 0
    assert invoke("doctor", "good.yaml", "--real-server", verbs=verbs).exit_code == 0
    assert asked == [False, True]


def test_doctor_of_an_invalid_file() -> None:
    result = invoke("doctor", "bad.yaml")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "bad.yaml:3:5" in result.stderr
    result = invoke("doctor", "bad.yaml", "-o", "json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["valid"] is False


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (FairleadError("the disk is full; make room"), 1, "fairlead: the disk is full; make room\n"),
        (Conflict("another fairlead runs"), 1, "fairlead: another fairlead runs\n"),
        (DataPlaneError("no worker"), 1, "fairlead: no worker\n"),
        (ConfigError(FINDINGS[1:]), 3, "bad.yaml:9:1: pools: must not be empty\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "fairlead: Permission denied: /x\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_errors_are_one_line(error: BaseException, code: int, says: str) -> None:
    result = invoke("run", verbs=raising(error))
    assert (result.exit_code, result.stderr) == (code, says)


def test_a_bug_shows_no_traceback_unless_asked() -> None:
    result = invoke("run", verbs=raising(ZeroDivisionError("by zero")))
    assert result.exit_code == 1
    assert result.stderr.startswith("fairlead: an error in fairlead itself: ZeroDivisionError: by zero")
    assert "Traceback" not in result.stderr
    assert "Traceback" in invoke("run", verbs=raising(ZeroDivisionError("x")), FAIRLEAD_DEBUG="1").stderr


def test_exit_codes_of_local_verbs_pass() -> None:
    assert invoke("run", verbs=dataclasses.replace(local(), run=lambda _: 7)).exit_code == 7


def test_no_daemon(tmp_path: Path) -> None:
    gone = tmp_path / "gone.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(gone))
    for path in (tmp_path / "never.sock", gone, tmp_path / "none" / "x.sock"):
        for verb in (
            ("show",),
            ("show", "events", "--watch"),
            ("drain", "web/a"),
            ("weight", "web/a", "1"),
            ("reload",),
        ):
            result = invoke(*verb, "--socket", str(path))
            assert (result.exit_code, result.stdout) == (4, ""), result.stderr
            assert str(path) in result.stderr
            assert "fairlead run" in result.stderr
            assert result.stderr.count("\n") == 1


def test_something_else_answers(tmp_path: Path) -> None:
    for said in (b"", b"220 mail.example ESMTP\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhiya",
                 b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n[]"):  # fmt: skip
        with stranger(tmp_path / "s.sock", said):
            result = invoke("show", "--socket", str(tmp_path / "s.sock"))
        assert result.exit_code == 4, (said, result.stderr)
        assert str(tmp_path / "s.sock") in result.stderr
        assert "Traceback" not in result.stderr


class stranger:  # noqa: N801 - reads like the function it stands for
    """Answers one connection with fixed octets."""

    def __init__(self, path: Path, said: bytes) -> None:
        self.path, self.said = path, said
        self.listener = socket.socket(socket.AF_UNIX)
        self.thread = threading.Thread(target=self.answer)

    def answer(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(self.said)

    def __enter__(self) -> None:
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.thread.join()
        self.listener.close()
        self.path.unlink()


def test_a_daemon_that_hangs(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> tuple[object, ...]:
        await daemon.facade.wait_event(10**6, 60)
        return ()

    monkeypatch.setattr("fairlead.cli.client.TIMEOUT_S", 0.1)
    daemon.facade.services = hang  # type: ignore[method-assign,assignment]
    result = invoke("show", "--socket", str(daemon.socket))
    assert result.exit_code == 4
    assert "did not answer within" in result.stderr


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    result = invoke("show", "--socket", "/s.sock")
    assert result.exit_code == 1
    assert "no permission to open /s.sock; run the command as root (sudo)" in result.stderr


def test_a_path_that_is_too_long() -> None:
    result = invoke("show", "--socket", "/" + "x" * 200)
    assert result.exit_code == 4
    assert "too long" in result.stderr


def test_the_socket_is_found(daemon: Serving) -> None:
    path = str(daemon.socket)
    assert invoke("show", "services", "--socket", path).exit_code == 0
    assert invoke("show", "--socket", path, "services").exit_code == 0
    assert invoke("drain", "--socket", path, "web/web-1").exit_code == 0
    assert invoke("show", FAIRLEAD_SOCKET=path).exit_code == 0
    assert invoke("show", "--socket", path, FAIRLEAD_SOCKET="/nowhere").exit_code == 0


@pytest.mark.parametrize("state", ["drain", "ready", "maint"])
def test_administrative_state(daemon: Serving, state: str) -> None:
    daemon.facade.servers_by_key["web/web-1"] = dataclasses.replace(
        daemon.facade.servers_by_key["web/web-1"], admin="maint" if state == "ready" else "ready"
    )
    before = daemon.facade.servers_by_key["web/web-1"].admin
    result = invoke(state, "web/web-1", "--dry-run", FAIRLEAD_SOCKET=str(daemon.socket))
    assert (result.exit_code, result.stdout) == (0, f"would change web/web-1: {before} -> {state}\n")
    assert daemon.facade.writes == []
    result = invoke(state, "web/web-1", FAIRLEAD_SOCKET=str(daemon.socket))
    assert (result.exit_code, result.stdout) == (0, f"web/web-1: {before} -> {state}\n")
    result = invoke(state, "web/web-1", FAIRLEAD_SOCKET=str(daemon.socket))
    assert (result.exit_code, result.stdout) == (0, "nothing to change\n")
    assert [str(admin) for _, admin, _ in daemon.facade.writes] == [state, state]


def test_weight_and_reload(daemon: Serving) -> None:
    path = str(daemon.socket)
    result = invoke("weight", "web/127.0.0.1:9003", "7", "-o", "json", FAIRLEAD_SOCKET=path)
    assert json.loads(result.stdout) == {"changes": ["web/127.0.0.1:9003: weight 1 -> 7"]}
    result = invoke("reload", "--dry-run", FAIRLEAD_SOCKET=path)
    assert result.stdout == "would change service web: idle_timeout 350s -> 60s\n"
    result = invoke("reload", "-o", "yaml", FAIRLEAD_SOCKET=path)
    assert yaml.safe_load(result.stdout) == {"changes": ["service web: idle_timeout 350s -> 60s"]}
    assert daemon.facade.writes == [("web/127.0.0.1:9003", None, 7), ("reload",)]


def test_refusals_of_the_daemon(daemon: Serving) -> None:
    path = str(daemon.socket)
    result = invoke("drain", "web/web-9", FAIRLEAD_SOCKET=path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "did you mean web/web-1" in result.stderr
    for key in ("web-1", "", "../../status", "a b/ü?x=1#", "\udcff"):
        result = invoke("drain", key, FAIRLEAD_SOCKET=path)
        assert result.exit_code == 1, key
        assert result.stderr.startswith("fairlead: no server"), key
    daemon.facade.failure = ConfigError(FINDINGS)
    result = invoke("reload", FAIRLEAD_SOCKET=path)
    assert (result.exit_code, result.stderr.splitlines()) == (3, [str(finding) for finding in FINDINGS])
    daemon.facade.failure = Conflict("another reload is under way")
    result = invoke("reload", FAIRLEAD_SOCKET=path)
    assert (result.exit_code, result.stderr) == (1, "fairlead: another reload is under way\n")
    daemon.facade.failure = ZeroDivisionError()
    assert invoke("show", FAIRLEAD_SOCKET=path).exit_code == 1


def test_a_reader_that_leaves(daemon: Serving) -> None:
    """As with any Unix tool: no complaint, and the code that a shell gives to SIGPIPE."""
    for arguments in (("show", "connections"), ("show", "connections", "-o", "json"), ("show",)):
        process = subprocess.Popen(
            [*PROGRAM, *arguments, "--socket", daemon.socket],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (141, b""), arguments


def test_a_full_disk(daemon: Serving) -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*PROGRAM, "show", "--socket", daemon.socket],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == b"fairlead: No space left on device: standard output\n"


def test_interrupted(daemon: Serving) -> None:
    # A suite in the background of a shell ignores SIGINT, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*PROGRAM, "show", "-o", "json", "--watch", "--socket", daemon.socket],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_no_answer_is_closed_by_its_finalizer(daemon: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt that came just then would be ignored, and `--watch` go on."""
    closed: list[bool] = []

    class Answer(http.client.HTTPResponse):
        def __del__(self) -> None:
            closed.append(self.closed)

    monkeypatch.setattr(http.client.HTTPConnection, "response_class", Answer)
    assert Client(Path(daemon.socket)).get("/v1/servers")
    assert closed == [True]


def test_show_starts_without_the_libraries_of_the_daemon(daemon: Serving) -> None:
    script = (
        "import sys; from support.cli import invoke; r = invoke('show', 'servers', '--socket', sys.argv[1]); "
        "assert r.exit_code == 0, r.output; print(' '.join(sys.modules))"
    )
    command = [PROGRAM[0], "-c", script, str(daemon.socket)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout.split()
    assert "fairlead.cli.show" in loaded
    heavy = {"pydantic", "starlette", "uvicorn", "structlog", "prometheus_client", "yaml", "asyncio"}
    assert not heavy.intersection(loaded)


@pytest.mark.serial
def test_show_starts_quickly(daemon: Serving) -> None:
    """150 ms is where people begin to notice (libraries.md); processor time, for others may be using the machine."""

    def spent() -> float:
        before = os.times()
        subprocess.run(
            [*PROGRAM, "show", "--socket", daemon.socket], check=True, capture_output=True, env=environment()
        )
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(spent() / slowness() for _ in range(5)) < 0.15


def test_text_that_the_terminal_cannot_show(daemon: Serving) -> None:
    daemon.facade.servers_by_key["web/web-1"] = server_view("web-1", 9001, down_reason="bad_body", detail="caf\u00e9")
    result = subprocess.run(
        [*PROGRAM, "show", "servers", "--socket", daemon.socket],
        capture_output=True,
        check=True,
        env=environment(PYTHONIOENCODING="ascii"),
    )
    assert b"bad_body (caf\\xe9)" in result.stdout
