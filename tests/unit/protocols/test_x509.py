# SPDX-License-Identifier: Apache-2.0
"""The end of a certificate, from real ones and from broken ones."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import MalformedPacket
from fairlead.protocols.x509 import not_after


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("x509") / "c.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=a -keyout -"
    subprocess.run([*command.split(), "-out", str(file)], check=True, capture_output=True)
    return file


def der(file: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(file.read_text())


def test_it_agrees_with_openssl(certificate: Path) -> None:
    command = ["openssl", "x509", "-in", str(certificate), "-noout", "-enddate"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().removeprefix("notAfter=")
    assert not_after(der(certificate)) == ssl.cert_time_to_seconds(said)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (b"\x17\x0d491231235959Z", 2524607999),
        (b"\x17\x0d500101000000Z", -631152000),
        (b"\x18\x0f20500101000000Z", 2524608000),
        (b"\x18\x0f99991231235959Z", 253402300799),
    ],
)
def test_both_forms_of_time(time: bytes, seconds: int) -> None:
    validity = b"\x30" + bytes([2 + len(time)]) + b"\x05\x00" + time
    signed = b"\xa0\x03\x02\x01\x02" + b"\x02\x01\x01" + b"\x30\x00" * 2 + validity
    whole = b"\x30" + bytes([len(signed)]) + signed
    assert not_after(b"\x30" + bytes([len(whole)]) + whole) == seconds


def test_every_cut_is_told(certificate: Path) -> None:
    whole = der(certificate)
    for end in range(0, len(whole), 7):
        with pytest.raises(MalformedPacket):
            not_after(whole[:end])


@given(st.binary(max_size=300))
def test_any_bytes_give_a_time_or_a_clear_error(data: bytes) -> None:
    try:
        not_after(data)
    except MalformedPacket:
        return
