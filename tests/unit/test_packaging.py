# SPDX-License-Identifier: Apache-2.0
"""The scripts behind ``make``: clear words when something is missing, right exit codes, no harm to the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "packaging"


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A directory of commands that stand in front of the real ones."""
    directory = tmp_path / "bin"
    directory.mkdir()
    return directory


def put(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run(commands: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, **environment}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environ, cwd=ROOT)


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (5, 0, 5), (0, 5, 0), (0, 2, 2)]
)
def test_the_exit_code_is_that_of_the_first_run_that_failed(
    commands: Path, first: int, second: int, expected: int
) -> None:
    put(commands, "python", f'case "$*" in *"not serial"*) exit {first};; *) exit {second};; esac')
    done = run(commands, str(SCRIPTS / "run-tests"), "python")
    assert done.returncode == expected


def test_what_is_installed_is_not_installed_again(commands: Path, tmp_path: Path) -> None:
    put(commands, "dpkg-query", "echo installed")
    put(commands, "apt-get", f"touch {tmp_path}/called")
    listed = tmp_path / "list"
    listed.write_text("# a comment\nnginx\nwrk # another\n")
    done = run(commands, str(SCRIPTS / "install-debian-packages"), str(listed))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "called").exists()


def test_who_is_not_root_is_told_what_to_install(commands: Path, tmp_path: Path) -> None:
    put(commands, "dpkg-query", '[ "$4" = nginx ] && echo installed || exit 1')
    put(commands, "id", "echo 1000")
    put(commands, "apt-get", f"touch {tmp_path}/called")
    listed = tmp_path / "list"
    listed.write_text("nginx\nwrk\ncurl\n")
    done = run(commands, str(SCRIPTS / "install-debian-packages"), str(listed))
    assert done.returncode == 1
    assert "sudo apt-get install --no-install-recommends wrk curl" in done.stderr
    assert not (tmp_path / "called").exists()


def test_root_installs_what_is_missing_and_starts_no_service(commands: Path, tmp_path: Path) -> None:
    put(commands, "dpkg-query", "exit 1")
    put(commands, "id", "echo 0")
    put(commands, "apt-get", f'echo "$*" >>{tmp_path}/called; [ -x {tmp_path}/policy ] || exit 9')
    listed = tmp_path / "list"
    listed.write_text("wrk\n")
    script = (SCRIPTS / "install-debian-packages").read_text()
    copy = tmp_path / "script"
    copy.write_text(script.replace("/usr/sbin/policy-rc.d", f"{tmp_path}/policy"))
    done = run(commands, "sh", str(copy), str(listed))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text().splitlines() == ["-q update", "-q install -y --no-install-recommends wrk"]
    assert not (tmp_path / "policy").exists()


def test_a_python_that_is_too_old_is_named_as_the_problem(commands: Path, tmp_path: Path) -> None:
    put(commands, "oldpython", "exit 1")
    done = run(commands, str(SCRIPTS / "make-venv"), str(tmp_path / "venv"), PYTHON="oldpython")
    assert done.returncode == 1
    assert done.stderr == (
        "fairlead needs Python 3.11 or later: install it (Debian 12: apt-get install python3-venv), or set PYTHON\n"
    )


def test_a_python_that_cannot_make_environments_is_named_as_the_problem(commands: Path, tmp_path: Path) -> None:
    put(commands, "barepython", 'case "$*" in *version_info*) exit 0;; *) exit 1;; esac')
    put(commands, "id", "echo 1000")
    done = run(commands, str(SCRIPTS / "make-venv"), str(tmp_path / "venv"), PYTHON="barepython")
    assert done.returncode == 1
    assert done.stderr.startswith("barepython cannot make virtual environments: install python3-venv")


def test_the_unit_lets_workers_outlive_the_agent() -> None:
    lines = (SCRIPTS / "fairlead.service").read_text().splitlines()
    for needed in ("Type=notify", "KillMode=process", "Restart=always", "RuntimeDirectoryPreserve=restart"):
        assert needed in lines
    assert [line for line in lines if line.startswith("CapabilityBoundingSet=")] == [
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE"
    ]


@pytest.mark.system
@pytest.mark.parametrize(
    "drop_ins", [(), ("fairlead-vips.conf",), ("fairlead-xdp.conf",), ("fairlead-vips.conf", "fairlead-xdp.conf")]
)
def test_systemd_understands_the_unit(tmp_path: Path, drop_ins: tuple[str, ...]) -> None:
    unit = tmp_path / "fairlead.service"
    unit.write_text((SCRIPTS / "fairlead.service").read_text().replace("/usr/bin/fairlead", "/bin/true"))
    for drop_in in drop_ins:
        (tmp_path / "fairlead.service.d").mkdir(exist_ok=True)
        (tmp_path / "fairlead.service.d" / drop_in).write_text((SCRIPTS / drop_in).read_text())
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
