# SPDX-License-Identifier: Apache-2.0
"""What the driver of an interface does: offloads (ethtool's ioctl) and what XDP can do with it (generic netlink).

Invariant: nothing here changes the host; what cannot be seen is None.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from typing import Self, TypeVar

from fairlead.protocols import netdev
from fairlead.protocols.netdev import Device, Family, XdpFeature
from fairlead.protocols.rtnetlink import Outcome

_SIOCETHTOOL = 0x8946
_GET_FLAGS, _GET_GRO = 0x25, 0x2B  # ETHTOOL_GFLAGS, ETHTOOL_GGRO
_FLAG_LRO = 1 << 15
_GENERIC = 16  # NETLINK_GENERIC
_BUFFER = 1 << 16
Answer = TypeVar("Answer", Family, Device)


class Devices:
    """A conversation with the kernel about drivers."""

    def __init__(self) -> None:
        self._ethtool = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _GENERIC)
        self._netlink.settimeout(5.0)
        self._sequence = 1
        self._family = self._ask(netdev.find_family(self._sequence), Family)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ethtool.close()
        self._netlink.close()

    def lro(self, interface: str) -> bool | None:
        """Whether large receive offload is on."""
        flags = self._value(interface, _GET_FLAGS)
        return None if flags is None else bool(flags & _FLAG_LRO)

    def gro(self, interface: str) -> bool | None:
        """Whether generic receive offload is on."""
        value = self._value(interface, _GET_GRO)
        return None if value is None else bool(value)

    def features(self, index: int) -> XdpFeature | None:
        """What XDP can do with an interface; None on kernels before 6.3."""
        if self._family is None:
            return None
        self._sequence += 1
        device = self._ask(netdev.get_device(self._sequence, self._family, index), Device)
        return None if device is None else device.features

    def _value(self, interface: str, command: int) -> int | None:
        """``struct ethtool_value``: a command in, a number out."""
        value = array.array("B", struct.pack("=II", command, 0))
        request = struct.pack("16sP8x", interface.encode(errors="surrogateescape"), value.buffer_info()[0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._ethtool, _SIOCETHTOOL, request)
            return int(struct.unpack("=II", value.tobytes())[1])
        return None

    def _ask(self, request: bytes, kind: type[Answer]) -> Answer | None:
        self._netlink.send(request)
        answer: Answer | None = None
        while True:
            data, sender = self._netlink.recvfrom(_BUFFER)
            if sender[0] != 0:  # only the kernel is believed
                continue
            for found in netdev.parse(data):
                if isinstance(found, kind):
                    answer = found
                elif isinstance(found, Outcome) and found.sequence == self._sequence:
                    return answer
