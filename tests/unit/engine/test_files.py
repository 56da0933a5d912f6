# SPDX-License-Identifier: Apache-2.0
"""The runtime directory is ours alone, one daemon holds it, and files in it are whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.engine.files import Lock, prepare_directory, replace_file
from fairlead.errors import Conflict, FairleadError


def test_the_directory_is_made_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "api.d"
    prepare_directory(path)
    prepare_directory(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_link_or_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(FairleadError, match="--socket"):
            prepare_directory(tmp_path / name)


def test_a_second_daemon_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = Lock(path)
    holder.acquire()
    with pytest.raises(Conflict, match=f"process {os.getpid()}"):
        Lock(path).acquire()
    holder.release()
    again = Lock(path)
    again.acquire()
    again.release()


def test_the_lock_falls_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import os; from pathlib import Path; from fairlead.engine.files import Lock; "
        f"Lock(Path({str(path)!r})).acquire(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    lock = Lock(path)
    lock.acquire()
    lock.release()


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_gives_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
