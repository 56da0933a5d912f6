# SPDX-License-Identifier: Apache-2.0
"""The flow hash: which slot of a LookupTable a new flow falls into, the same here, in workers and on every node.

Invariant: addresses are hashed in network order; a v4-mapped IPv6 address counts as the IPv4 address in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count

from fairlead.model.net import Endpoint, IPAddress, Listen, Protocol
from fairlead.policy.siphash import siphash13

PROTOCOL_NUMBER = {Protocol.TCP: 6, Protocol.UDP: 17}  # IANA protocol numbers
GAMMA = 0x9E3779B97F4A7C15  # the odd increment of SplitMix64
MASK64 = (1 << 64) - 1


def service_seed(first_listen: Listen, hash_seed: bytes | None) -> bytes:
    """The 16-byte key of a service's flow hash and tables: nodes with the same address and ``hash_seed`` agree."""
    return hashlib.blake2b(str(first_listen).encode(), digest_size=16, key=hash_seed or b"").digest()


def flow_message(protocol: Protocol, client: Endpoint, vip: Endpoint) -> bytes:
    """What is hashed for a flow: 16 bytes for IPv4, 40 for IPv6."""
    ports = client.port.to_bytes(2, "big") + vip.port.to_bytes(2, "big")
    addresses = _packed(client.address) + _packed(vip.address)
    return addresses + ports + bytes((PROTOCOL_NUMBER[protocol], 0, 0, 0))


def source_message(client: IPAddress) -> bytes:
    """What scheduler ``sh`` hashes: the client's address alone, 8 bytes for IPv4, 16 for IPv6."""
    packed = _packed(client)
    return packed + bytes(4) if len(packed) == 4 else packed


def flow_hash(seed: bytes, message: bytes) -> int:
    """64 bits that choose the slot; ``seed`` is the service's."""
    return siphash13(seed, message)


def slot_of(flow: int, size: int) -> int:
    """The slot of a hash in a table of ``size`` slots: its upper half, scaled (Lemire, "Fast Random Integer
    Generation in an Interval", 2019).
    """
    return ((flow >> 32) * size) >> 32


def probes(flow: int, size: int) -> Iterator[int]:
    """The slots to try for a flow, in order and without end: its own, then those that further tries fall into."""
    yield slot_of(flow, size)
    for attempt in count(1):
        yield slot_of(splitmix64((flow + attempt * GAMMA) & MASK64), size)


def splitmix64(state: int) -> int:
    """The output function of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).

    Fed with ``seed + k * GAMMA`` it gives the k-th output of that generator.
    """
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
    return state ^ (state >> 31)


def _packed(address: IPAddress) -> bytes:
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped.packed
    return address.packed
