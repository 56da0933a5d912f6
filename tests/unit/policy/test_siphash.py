# SPDX-License-Identifier: Apache-2.0
"""SipHash-1-3 against CPython, which hashes bytes with the same function (PEP 456), and against known vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fairlead.policy.siphash import siphash13

MESSAGES = [bytes((7 * n + i) & 0xFF for i in range(n)) for n in range(1, 65)]


def cpython_key(seed: int) -> bytes:
    """The key that CPython derives from PYTHONHASHSEED: a linear congruential generator, all zero for 0."""
    state, key = seed, bytearray()
    for _ in range(16):
        state = (state * 214013 + 2531011) & 0xFFFFFFFF
        key.append((state >> 16) & 0xFF)
    return bytes(key) if seed else bytes(16)


def cpython_hashes(seed: int) -> list[int]:
    code = f"import json; print(json.dumps([hash(bytes.fromhex(m)) for m in {[m.hex() for m in MESSAGES]!r}]))"
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    hashes: list[int] = json.loads(output)
    return [value & (1 << 64) - 1 for value in hashes]


@pytest.mark.parametrize("seed", [0, 1, 20260101])
def test_equals_the_hash_of_cpython(seed: int) -> None:
    assert sys.hash_info.algorithm == "siphash13"
    key = cpython_key(seed)
    assert [siphash13(key, message) for message in MESSAGES] == cpython_hashes(seed)


def test_the_empty_message() -> None:
    """CPython gives 0 for it; these are results of the authors' reference implementation."""
    assert siphash13(bytes(16), b"") == 0xD1FBA762150C532C
    assert siphash13(bytes(range(16)), b"") == 0xABAC0158050FC4DC
