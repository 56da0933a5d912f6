# SPDX-License-Identifier: Apache-2.0
"""Messages of rtnetlink(7) about routing rules and routes to local sockets, as bytes.

Invariant: ``parse`` tells only of rules that look as ``add_rule`` makes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from fairlead.model.net import IPAddress
from fairlead.protocols.rtnetlink import Outcome, attribute, attributes, datagram, message, outcome

OWNER = 0xFA  # of rules and routes that neither the kernel nor another known program made (FRA_PROTOCOL)
TABLE = 0xFA5000
PRIORITY = 0x2FA5  # before the main table, behind the host's own addresses

_NEW_ROUTE, _DEL_ROUTE, _NEW_RULE, _DEL_RULE, _GET_RULE = 24, 25, 32, 33, 34
_REQUEST, _ACK, _DUMP, _REPLACE, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
_RULE = struct.Struct("=BBBBBxxBI")  # family, lengths of destination and source, tos, table, action, flags
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, protocol, scope, type, flags
_SOURCE, _PRIORITY, _TABLE, _PROTOCOL, _IP_PROTOCOL, _SOURCE_PORTS = 2, 6, 15, 21, 22, 23
_RTA_OUT, _RTA_TABLE = 4, 15
_TO_TABLE, _LOCAL, _HOST_SCOPE = 1, 2, 254
_FAMILY = {4: 2, 6: 10}  # AF_INET, AF_INET6


@dataclass(frozen=True, slots=True)
class Rule:
    """What comes from these ports of a server belongs to a local socket. ``protocol`` is IANA's number."""

    source: IPAddress
    protocol: int
    first: int
    last: int


def add_rule(sequence: int, rule: Rule) -> bytes:
    """Add a rule; fails with EEXIST when it is there."""
    return message(_NEW_RULE, _REQUEST | _ACK | _CREATE | _EXCLUSIVE, sequence, _rule_body(rule))


def delete_rule(sequence: int, rule: Rule) -> bytes:
    """Remove a rule; fails with ENOENT when it is not there."""
    return message(_DEL_RULE, _REQUEST | _ACK, sequence, _rule_body(rule))


def dump_rules(sequence: int, version: int) -> bytes:
    """Ask for all rules of IPv4 or IPv6."""
    return message(_GET_RULE, _REQUEST | _DUMP, sequence, _RULE.pack(_FAMILY[version], 0, 0, 0, 0, 0, 0))


def add_local_route(sequence: int, version: int, loopback: int) -> bytes:
    """Everything that is looked up in our table is for this host; ``loopback`` is the index of that interface."""
    return message(_NEW_ROUTE, _REQUEST | _ACK | _CREATE | _REPLACE, sequence, _route_body(version) + _out(loopback))


def delete_local_route(sequence: int, version: int, loopback: int) -> bytes:
    """Remove that; fails with ESRCH when it is not there."""
    return message(_DEL_ROUTE, _REQUEST | _ACK, sequence, _route_body(version) + _out(loopback))


def parse(data: bytes) -> Iterator[Rule | Outcome]:
    """What one datagram from the kernel says about our rules."""
    for kind, _, sequence, body in datagram(data):
        if kind == _NEW_RULE and len(body) >= _RULE.size and (rule := _read_rule(body)) is not None:
            yield rule
        elif (ended := outcome(kind, sequence, body)) is not None:
            yield ended


def _read_rule(body: bytes) -> Rule | None:
    found = dict(attributes(body, _RULE.size))
    ours = (
        found.get(_PROTOCOL) == bytes([OWNER])
        and found.get(_TABLE) == struct.pack("=I", TABLE)
        and len(found.get(_SOURCE, b"")) in (4, 16)
        and len(found.get(_IP_PROTOCOL, b"")) == 1
        and len(found.get(_SOURCE_PORTS, b"")) == 4
    )
    if not ours:
        return None
    first, last = struct.unpack("=HH", found[_SOURCE_PORTS])
    return Rule(ip_address(found[_SOURCE]), found[_IP_PROTOCOL][0], first, last)


def _rule_body(rule: Rule) -> bytes:
    packed = rule.source.packed
    return b"".join(
        (
            _RULE.pack(_FAMILY[rule.source.version], 0, len(packed) * 8, 0, 0, _TO_TABLE, 0),
            attribute(_SOURCE, packed),
            attribute(_PRIORITY, struct.pack("=I", PRIORITY)),
            attribute(_TABLE, struct.pack("=I", TABLE)),
            attribute(_PROTOCOL, bytes([OWNER])),
            attribute(_IP_PROTOCOL, bytes([rule.protocol])),
            attribute(_SOURCE_PORTS, struct.pack("=HH", rule.first, rule.last)),
        )
    )


def _route_body(version: int) -> bytes:
    head = _ROUTE.pack(_FAMILY[version], 0, 0, 0, 0, OWNER, _HOST_SCOPE, _LOCAL, 0)
    return head + attribute(_RTA_TABLE, struct.pack("=I", TABLE))


def _out(loopback: int) -> bytes:
    return attribute(_RTA_OUT, struct.pack("=I", loopback))
