# SPDX-License-Identifier: Apache-2.0
"""The PROXY protocol header of a connection that nobody is behind but this node: that of a probe.

Source: "The PROXY protocol", versions 1 and 2, section 2 (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt).
"""

from __future__ import annotations

from fairlead.model.net import Endpoint

SIGNATURE_2 = b"\r\n\r\n\0\r\nQUIT\n"
_VERSION_2_LOCAL = 0x20


def version_1(source: Endpoint, destination: Endpoint) -> bytes:
    """One line with both ends of the connection: ``UNKNOWN``, though legal, is refused by many receivers."""
    family = "TCP6" if source.address.version == 6 else "TCP4"
    return f"PROXY {family} {source.address} {destination.address} {source.port} {destination.port}\r\n".encode("ascii")


def version_2_local() -> bytes:
    """Command LOCAL without addresses: "established on purpose by the proxy without being relayed"."""
    return SIGNATURE_2 + bytes((_VERSION_2_LOCAL, 0, 0, 0))
