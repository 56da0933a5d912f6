# SPDX-License-Identifier: Apache-2.0
"""PROXY protocol headers of probes, byte by byte."""

from __future__ import annotations

from fairlead.protocols.proxy_header import version_1, version_2_local
from support.models import endpoint


def test_version_1_names_both_ends() -> None:
    assert version_1(endpoint("192.0.2.1:5000"), endpoint("192.0.2.2:80")) == (
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\n"
    )
    assert version_1(endpoint("[2001:db8::1]:5000"), endpoint("[2001:db8::2]:80")) == (
        b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 80\r\n"
    )


def test_version_2_is_local() -> None:
    assert version_2_local() == bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")
