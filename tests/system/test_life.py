# SPDX-License-Identifier: Apache-2.0
"""Starting, stopping and being told: signals, the command line, bad starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support.processes import CLI, Daemon, Nginx, accepts, free_port
from support.traffic import Traffic, ask
from support.wait import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

EXAMPLES = Path(__file__).parents[2] / "examples"


def configuration(port: int, *servers: str, more: str = "", drain: str = "30s") -> str:
    return (
        f"services:\n  web: {{listen: '127.0.0.1:{port}', pool: web, scheduler: rr}}\n{more}"
        f"pools:\n  web:\n    servers: [{', '.join(servers)}]\n    drain_timeout: {drain}\n"
        "    health: {type: tcp, interval: 200ms, timeout: 200ms}\n"
    )


def test_term_lets_connections_end_and_takes_no_new_ones(runtime: Path) -> None:
    port = free_port()
    with Nginx(runtime, "a") as nginx, Daemon(runtime, configuration(port, nginx.address)) as daemon:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as held:
            assert ask(held, "test", close=False) == "a"
            daemon.signal(signal.SIGTERM)
            until(lambda: not accepts("127.0.0.1", port), 10, "no new connections")
            assert ask(held, "test", close=False) == "a"
            assert daemon.is_running()
        assert daemon.ended(10) == 0
    assert daemon.worker_pids_left() == []


def test_a_second_term_ends_now(runtime: Path) -> None:
    port = free_port()
    with (
        Nginx(runtime, "a") as nginx,
        Daemon(runtime, configuration(port, nginx.address)) as daemon,
        socket.create_connection(("127.0.0.1", port), timeout=5) as held,
    ):
        assert ask(held, "test", close=False) == "a"
        daemon.signal(signal.SIGTERM)
        until(lambda: not accepts("127.0.0.1", port), 10, "no new connections")
        daemon.signal(signal.SIGTERM)
        assert daemon.ended(10) == 0
        with pytest.raises(ConnectionResetError):
            held.recv(1)
    assert daemon.worker_pids_left() == []


def test_usr2_ends_the_agent_alone_for_an_upgrade(runtime: Path) -> None:
    port = free_port()
    with Nginx(runtime, "a") as nginx, Daemon(runtime, configuration(port, nginx.address)) as daemon:
        workers = daemon.worker_pids()
        with Traffic("127.0.0.1", port) as short, Traffic("127.0.0.1", port, long=True) as long:
            until(lambda: len(short.answers) > 50 and len(long.answers) > 50, 20, "traffic flows")
            daemon.signal(signal.SIGUSR2)
            assert daemon.ended(10) == 0
            daemon.start()
            assert daemon.worker_pids() == workers
            count = len(short.answers)
            until(lambda: len(short.answers) > count + 50, 20, "traffic flows on")
        assert short.failures() == []
        assert long.failures() == []


def test_hup_reloads_and_usr1_prints_the_state(runtime: Path) -> None:
    port = free_port()
    with (
        Nginx(runtime, "a") as a,
        Nginx(runtime, "b") as b,
        Daemon(runtime, configuration(port, a.address)) as daemon,
    ):
        daemon.file.write_text(configuration(port, a.address, b.address))
        daemon.signal(signal.SIGHUP)
        until(lambda: len(daemon.show("servers")) == 2, 10, "both servers")
        daemon.signal(signal.SIGUSR1)
        until(lambda: '"services":' in daemon.log.read_text(), 10, "the dump")
        line = next(line for line in daemon.log.read_text().splitlines() if line.startswith("{"))
        state = json.loads(line)
        assert [server["key"] for server in state["services"][0]["servers"]] == [
            f"web/{a.address}",
            f"web/{b.address}",
        ]


def test_hup_with_an_invalid_file_is_told_and_harmless(runtime: Path) -> None:
    port = free_port()
    with Nginx(runtime, "a") as nginx, Daemon(runtime, configuration(port, nginx.address)) as daemon:
        daemon.file.write_text("services: [")
        daemon.signal(signal.SIGHUP)
        until(lambda: "reload_failed" in daemon.log.read_text(), 10, "the refusal")
        status = json.loads(daemon.cli("show", "status", "-o", "json").stdout)
        assert status["last_reload_ok"] is False
        assert str(daemon.file) in status["last_reload_error"]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            assert ask(client, "test", close=True) == "a"


def test_an_address_in_use_is_a_clear_refusal_and_leaves_nothing(runtime: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = Daemon(runtime, configuration(port, "127.0.0.1:1"))
        done = daemon.run_to_its_end(20)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "another program holds the address" in done.stderr
    assert "Traceback" not in done.stderr
    assert daemon.worker_pids_left() == []


def test_a_second_daemon_on_the_same_socket_is_refused(runtime: Path) -> None:
    port = free_port()
    with Daemon(runtime, configuration(port, "127.0.0.1:1")) as daemon:
        second = daemon.run_to_its_end(20)
        assert second.returncode == 1
        assert f"process {daemon.pid}" in second.stderr
        assert daemon.is_running()


def test_an_invalid_file_stops_the_start_with_every_problem(runtime: Path) -> None:
    daemon = Daemon(runtime, "services:\n  web: {listen: nowhere, pool: web, retires: 3, idle_timeout: 5}\n")
    done = daemon.run_to_its_end(20)
    assert done.returncode == 3
    assert done.stderr.count(f"{daemon.file}:2:") >= 3
    assert "did you mean `retries`?" in done.stderr
    missing = subprocess.run(
        [*CLI, "run", str(runtime / "none.yaml")], capture_output=True, text=True, check=False, timeout=20
    )
    assert missing.returncode == 3
    assert "No such file" in missing.stderr


def test_one_service_without_a_file(runtime: Path) -> None:
    port = free_port("::1")
    with Nginx(runtime, "a") as nginx:
        process = subprocess.Popen(
            [
                *CLI,
                "run",
                "--listen",
                f"[::1]:{port}",
                "--server",
                nginx.address,
                "--socket",
                str(runtime / "api.sock"),
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: accepts("::1", port), 10, "it listens")
            with socket.create_connection(("::1", port), timeout=5) as client:
                assert ask(client, "test", close=True) == "a"
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0


def test_ten_megabytes_arrive_whole_over_both_families(runtime: Path) -> None:
    port = free_port()
    more = f"  six: {{listen: '[::1]:{port}', pool: web}}\n"
    with Nginx(runtime, "a") as nginx:
        content = os.urandom(10_000_000)
        (nginx.directory / "data" / "big").mkdir(parents=True)
        (nginx.directory / "data" / "big" / "file").write_bytes(content)
        with Daemon(runtime, configuration(port, nginx.address, more=more)):
            for host in ("127.0.0.1", "[::1]"):
                done = subprocess.run(
                    ["curl", "-sSg", "--max-time", "20", f"http://{host}:{port}/data/big/file"],
                    capture_output=True,
                    check=True,
                )
                assert done.stdout == content


def test_the_demo_shows_itself_and_ends_without_a_trace(runtime: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [*CLI, "demo", "--listen", f"127.0.0.1:{port}", "--socket", str(runtime / "api.sock")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        until(lambda: any("drain web/server-1" in line for line in lines), 20, "the picture")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            assert ask(client, "test", close=True).startswith("server-")
        assert any(line.startswith("web  up") for line in lines)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        reader.join(10)
        errors = process.stderr.read() if process.stderr else ""
        process.stdout.close()
        if process.stderr:
            process.stderr.close()
    assert "Traceback" not in errors
    assert list(runtime.glob("*.sock")) == []


def test_the_demo_ends_with_its_terminal(runtime: Path) -> None:
    ours, theirs = os.openpty()
    command = [*CLI, "demo", "--listen", f"127.0.0.1:{free_port()}", "--socket", str(runtime / "api.sock")]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        seen = b""
        while b"drain web/server-1" not in seen:
            seen += os.read(ours, 65536)
        os.close(ours)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert list(runtime.glob("*.sock")) == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [("quickstart.yaml", "1 service, 1 pool, 3 servers"), ("proxy-full.yaml", "3 services, 2 pools, 5 servers")],
)
def test_examples_are_valid(name: str, parts: str) -> None:
    done = subprocess.run(
        [*CLI, "check", str(EXAMPLES / name)], capture_output=True, text=True, check=False, timeout=20
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"{EXAMPLES / name}: valid: {parts}")


def test_quickstart_serves(runtime: Path) -> None:
    """The example as it is, but for its ports, which may be taken here."""
    port = free_port()
    text = (EXAMPLES / "quickstart.yaml").read_text()
    with Nginx(runtime, "a") as a, Nginx(runtime, "b") as b, Nginx(runtime, "c") as c:
        text = text.replace("8080", str(port))
        for old, server in zip(("9001", "9002", "9003"), (a, b, c), strict=True):
            text = text.replace(old, str(server.port))
        with Daemon(runtime, text), Traffic("127.0.0.1", port) as traffic:
            until(lambda: {x.server for x in traffic.answers} == {"a", "b", "c"}, 20, "every server answers")
        assert traffic.failures() == []


def test_the_program_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "fairlead", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fairlead ")
