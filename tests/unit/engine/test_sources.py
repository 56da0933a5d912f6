# SPDX-License-Identifier: Apache-2.0
"""Configuration files are read once each, whole, and never wait for anybody."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fairlead.config import load
from fairlead.engine.sources import read_sources
from fairlead.errors import ConfigError

TEXT = "services: {web: {listen: 127.0.0.1:8080, pool: web}}\npools: {web: {servers: [127.0.0.1:9001]}}\n"


def test_f50_what_was_read_is_what_is_applied(tmp_path: Path) -> None:
    file = tmp_path / "fairlead.yaml"
    file.write_text(TEXT)
    sources = read_sources(file)
    file.write_text(TEXT.replace("9001", "9002"))
    loaded = load(sources, {})
    assert loaded.configuration.digest == hashlib.sha256(TEXT.encode()).hexdigest()
    assert [server.endpoint.port for server in loaded.configuration.pools["web"].servers] == [9001]


def test_f50_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf.d").mkdir()
    for name in ("fairlead.yaml", "conf.d/b.yaml", "conf.d/a.yaml"):
        (tmp_path / name).write_text(TEXT)
    opened: list[str] = []
    real = os.open

    def noting(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append(str(path))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", noting)
    names = [source.name for source in read_sources(tmp_path / "fairlead.yaml")]
    assert opened == names == [str(tmp_path / n) for n in ("fairlead.yaml", "conf.d/a.yaml", "conf.d/b.yaml")]


def test_every_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "conf.d" / "dir.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        read_sources(tmp_path / "none.yaml")
    text = str(caught.value)
    assert f"{tmp_path}/none.yaml: cannot be read: No such file" in text
    assert f"{tmp_path}/conf.d/dir.yaml: cannot be read" in text


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_sources(tmp_path / "pipe")
