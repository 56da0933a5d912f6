# SPDX-License-Identifier: Apache-2.0
"""SipHash-1-3: a keyed hash that clients who do not know the key cannot steer (Aumasson, Bernstein, 2012)."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_FINAL_ROUNDS = 3


def siphash13(key: bytes, message: bytes) -> int:
    """64 bits of ``message`` under ``key`` (16 bytes), with one round a word and three at the end."""
    low, high = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:16], "little")
    # The paper's constants: "somepseudorandomlygeneratedbytes".
    state = (low ^ 0x736F6D6570736575, high ^ 0x646F72616E646F6D, low ^ 0x6C7967656E657261, high ^ 0x7465646279746573)
    whole = len(message) & ~7
    for at in range(0, whole, 8):
        state = _absorb(state, int.from_bytes(message[at : at + 8], "little"))
    state = _absorb(state, int.from_bytes(message[whole:], "little") | ((len(message) & 0xFF) << 56))
    v0, v1, v2, v3 = state
    state = (v0, v1, v2 ^ 0xFF, v3)
    for _ in range(_FINAL_ROUNDS):
        state = _round(state)
    v0, v1, v2, v3 = state
    return v0 ^ v1 ^ v2 ^ v3


_State = tuple[int, int, int, int]


def _absorb(state: _State, word: int) -> _State:
    v0, v1, v2, v3 = state
    v0, v1, v2, v3 = _round((v0, v1, v2, v3 ^ word))
    return v0 ^ word, v1, v2, v3


def _round(state: _State) -> _State:
    v0, v1, v2, v3 = state
    v0 = (v0 + v1) & _MASK
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 = (v2 + v3) & _MASK
    v3 = _rotate(v3, 16) ^ v2
    v0 = (v0 + v3) & _MASK
    v3 = _rotate(v3, 21) ^ v0
    v2 = (v2 + v1) & _MASK
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def _rotate(word: int, by: int) -> int:
    return ((word << by) | (word >> (64 - by))) & _MASK
