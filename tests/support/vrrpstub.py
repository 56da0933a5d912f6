# SPDX-License-Identifier: Apache-2.0
"""A process that answers like the one for VIPs and owns nothing: ``python -m support.vrrpstub SOCKET``.

The file ``protocol`` beside the socket says which protocol it speaks; ``heard`` gets what it was told, a line each.
A file ``die`` makes it end with an error as soon as it has been told something.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

from fairlead.announce.base import Event, Report, decode, encode


def main() -> int:
    path = Path(sys.argv[1])
    protocol = int((path.parent / "protocol").read_text())
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        Path(f"{path}.new").rename(path)  # whoever sees it can connect
        while True:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(ConnectionError):  # an agent that goes leaves what it has not read
                peer.send(encode("hello", {"pid": os.getpid(), "version": "0", "protocol": protocol}))
                peer.send(encode("event", Event("vrrp_backup", "pair", "hello")))
                peer.send(encode("report", Report(invalid={"eth0": {"ttl": os.getpid()}})))
                while message := peer.recv(1 << 20):
                    with (path.parent / "heard").open("a") as heard:
                        heard.write(message.decode() + "\n")
                    if decode(message)[0] == "quit":
                        return 0
                    if (path.parent / "die").exists():
                        sys.stderr.write("the stub was told to die\n")
                        return 1


if __name__ == "__main__":
    sys.exit(main())
