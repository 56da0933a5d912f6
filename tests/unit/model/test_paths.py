# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.errors import FairleadError
from fairlead.model.paths import default_socket, named_socket, runtime_directory


@pytest.mark.parametrize(
    ("environment", "is_root", "socket"),
    [
        ({}, True, "/run/fairlead/api.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/1000"}, False, "/run/user/1000/fairlead/api.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, True, "/run/fairlead/api.sock"),
        ({"FAIRLEAD_SOCKET": "/tmp/a.sock", "XDG_RUNTIME_DIR": "/run/user/1000"}, False, "/tmp/a.sock"),
        ({"FAIRLEAD_SOCKET": "/tmp/a.sock"}, True, "/tmp/a.sock"),
        ({"FAIRLEAD_SOCKET": ""}, True, "/run/fairlead/api.sock"),
    ],
)
def test_default_socket(environment: dict[str, str], is_root: bool, socket: str) -> None:
    assert default_socket(environment, is_root) == Path(socket)


def test_without_any_place_it_says_what_to_do() -> None:
    with pytest.raises(FairleadError, match=r"XDG_RUNTIME_DIR.*--socket PATH or FAIRLEAD_SOCKET"):
        default_socket({"XDG_RUNTIME_DIR": ""}, False)


def test_named_socket() -> None:
    assert named_socket({"FAIRLEAD_SOCKET": "x"}) == Path("x")
    assert named_socket({"FAIRLEAD_SOCKET": ""}) is None
    assert named_socket({}) is None


@pytest.mark.parametrize(
    ("socket", "directory"),
    [
        ("/run/fairlead/api.sock", "/run/fairlead/api.d"),
        ("a.b.sock", "a.b.d"),
        ("/x/socket", "/x/socket.d"),
        ("v1.2", "v1.2.d"),
    ],
)
def test_runtime_directory(socket: str, directory: str) -> None:
    assert runtime_directory(Path(socket)) == Path(directory)
