# SPDX-License-Identifier: Apache-2.0
"""The bytes that are hashed for a flow, and the slots they lead to: a contract with workers and with other nodes."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import islice

import pytest

from fairlead.model.net import Protocol
from fairlead.policy import flowhash
from support.models import SEED, endpoint, listen


def test_message_of_an_ipv4_flow() -> None:
    message = flowhash.flow_message(Protocol.TCP, endpoint("198.51.100.7:40000"), endpoint("192.0.2.10:443"))
    assert message.hex() == "c6336407" + "c000020a" + "9c40" + "01bb" + "06" + "000000"


def test_message_of_an_ipv6_flow() -> None:
    message = flowhash.flow_message(Protocol.UDP, endpoint("[2001:db8::7]:40000"), endpoint("[2001:db8::10]:53"))
    expected = "20010db8" + "0" * 23 + "7" + "20010db8" + "0" * 22 + "10" + "9c40" + "0035" + "11" + "000000"
    assert message.hex() == expected


def test_a_mapped_address_counts_as_ipv4() -> None:
    plain = flowhash.flow_message(Protocol.TCP, endpoint("198.51.100.7:40000"), endpoint("192.0.2.10:443"))
    mapped = flowhash.flow_message(
        Protocol.TCP, endpoint("[::ffff:198.51.100.7]:40000"), endpoint("[::ffff:192.0.2.10]:443")
    )
    assert plain == mapped
    assert flowhash.source_message(ip_address("::ffff:198.51.100.7")).hex() == "c633640700000000"


def test_message_of_an_ipv6_source() -> None:
    assert flowhash.source_message(ip_address("2001:db8::7")) == ip_address("2001:db8::7").packed


@pytest.mark.parametrize(
    ("flow", "size", "slot"),
    [
        (0, 65537, 0),
        ((1 << 64) - 1, 65537, 65536),
        (1 << 63, 10, 5),
        ((1 << 63) - 1, 10, 4),
        (0xFFFFFFFF, 10, 0),
        (0x19999999FFFFFFFF, 10, 0),
    ],
)
def test_slot_is_the_scaled_upper_half(flow: int, size: int, slot: int) -> None:
    assert flowhash.slot_of(flow, size) == slot


def test_splitmix64_gives_the_published_sequence() -> None:
    """The first outputs of SplitMix64 seeded with 1234567, as its author's C program prints them."""
    outputs = [flowhash.splitmix64((1234567 + k * flowhash.GAMMA) & flowhash.MASK64) for k in (1, 2, 3, 4, 5)]
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_probes_start_with_the_flows_own_slot() -> None:
    flow = 1234567
    first, second, third = islice(flowhash.probes(flow, 65537), 3)
    assert first == flowhash.slot_of(flow, 65537)
    assert second == flowhash.slot_of(6457827717110365317, 65537)
    assert third == flowhash.slot_of(3203168211198807973, 65537)


def test_probes_wrap_in_64_bits() -> None:
    flow = (1 << 64) - 1
    assert list(islice(flowhash.probes(flow, 10), 3))[1] == flowhash.slot_of(
        flowhash.splitmix64((flow + flowhash.GAMMA) % (1 << 64)), 10
    )


def test_flow_hash_is_keyed() -> None:
    message = flowhash.flow_message(Protocol.TCP, endpoint("198.51.100.7:40000"), endpoint("192.0.2.10:443"))
    assert flowhash.flow_hash(SEED, message) != flowhash.flow_hash(bytes(16), message)


def test_service_seed_depends_on_the_address_and_on_the_shared_seed() -> None:
    here = flowhash.service_seed(listen("192.0.2.10:443"), None)
    assert len(here) == 16
    assert here == flowhash.service_seed(listen("192.0.2.10:443"), None)
    assert here != flowhash.service_seed(listen("192.0.2.11:443"), None)
    assert here != flowhash.service_seed(listen("192.0.2.10:443"), SEED)
