# SPDX-License-Identifier: Apache-2.0
"""Messages of rtnetlink(7) about the filters of tc(8): whose programs see what leaves or enters by an interface.

Invariant: as in ``rtnetlink``, whatever a kernel sends is taken; what is cut short or unknown is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fairlead.protocols.rtnetlink import Outcome, attributes, datagram, message, outcome

_NEW_FILTER, _GET_FILTER = 44, 46
_REQUEST, _DUMP = 0x1, 0x300
_TC = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, priority and protocol
_CLSACT = {False: 0xFFFFFFF2, True: 0xFFFFFFF3}  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS)
_KIND, _OPTIONS, _BPF_NAME = 1, 2, 7


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter; ``handle`` 0 is the head of those with one priority. ``name`` is that of a BPF program."""

    index: int
    kind: str
    handle: int
    priority: int
    name: str


def dump_filters(sequence: int, index: int, *, egress: bool) -> bytes:
    """Ask for all filters of one direction of an interface; of one without the qdisc clsact there are none."""
    return message(_GET_FILTER, _REQUEST | _DUMP, sequence, _TC.pack(0, index, 0, _CLSACT[egress], 0))


def parse(data: bytes) -> Iterator[Filter | Outcome]:
    """What one datagram from the kernel says."""
    for kind, _, sequence, body in datagram(data):
        if kind == _NEW_FILTER and len(body) >= _TC.size:
            yield _read(body)
        elif (ended := outcome(kind, sequence, body)) is not None:
            yield ended


def _read(body: bytes) -> Filter:
    _, index, handle, _, info = _TC.unpack_from(body)
    found = dict(attributes(body, _TC.size))
    options = dict(attributes(found.get(_OPTIONS, b""), 0))
    return Filter(index, _text(found.get(_KIND, b"")), handle, info >> 16, _text(options.get(_BPF_NAME, b"")))


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="surrogateescape")
