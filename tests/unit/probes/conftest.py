# SPDX-License-Identifier: Apache-2.0
"""Certificates of servers that tests probe."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificates:
    """Files of one self-made authority: PEM, key and certificate of a server in one file."""

    authority: Path
    good: Path  # for good.test and 127.0.0.1
    stranger: Path  # for the same names, by itself


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    authority = _make(directory, "authority", "-addext", "keyUsage=keyCertSign")
    names = ("-addext", "subjectAltName=DNS:good.test,IP:127.0.0.1")
    good = _make(directory, "good", *names, "-CA", str(authority), "-CAkey", str(authority))
    return Certificates(authority, good, _make(directory, "stranger", *names))


def _make(directory: Path, name: str, *options: str) -> Path:
    file = directory / f"{name}.pem"
    key = directory / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
        "-subj",
    ]
    command += [f"/CN={name}", "-keyout", str(key), "-out", str(file), *options]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(key.read_bytes() + file.read_bytes())
    return file
