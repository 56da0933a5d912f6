# SPDX-License-Identifier: Apache-2.0
"""What an interface's driver leaves undone of packets that come by it."""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array

from fairlead.dataplane.xdp.links import GENERIC

_SIOCETHTOOL = 0x8946
_GET_DRIVER = 0x03  # ETHTOOL_GDRVINFO
_DRIVER_BYTES, _DRIVER_AT, _BUS_AT, _WORD = 196, 4, 100, 32
# They stand on a bus like hardware, and packets of guests beside this one come through them unfinished.
_PARAVIRTUAL = frozenset({"virtio_net", "vif", "hv_netvsc", "vmxnet3"})


def leaves_checksums(name: str, mode: str) -> bool:
    """Whether packets may come by this interface whose senders left the checksum to hardware that they never meet."""
    if mode == GENERIC:
        return True
    try:
        raw = _ask(name, _GET_DRIVER, _DRIVER_BYTES)
    except OSError:
        return True  # no driver of hardware
    driver, bus = (raw[at : at + _WORD].partition(b"\0")[0].decode() for at in (_DRIVER_AT, _BUS_AT))
    return driver in _PARAVIRTUAL or ":" not in bus


def _ask(name: str, question: int, size: int) -> bytes:
    """The kernel's answer, which begins with the question; OSError when there is none."""
    answer = array("B", struct.pack("=I", question).ljust(size, b"\0"))
    request = struct.pack("16sP16x", name.encode(), answer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, _SIOCETHTOOL, request)
    return answer.tobytes()
