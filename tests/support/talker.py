# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server, run as a program: PORT... It says which port was asked and whom it takes for the client.

A PROXY header in front of a request is believed; a request without one is answered as well.
"""

from __future__ import annotations

import contextlib
import socketserver
import sys
import threading

from fairlead.protocols.proxy_header import Malformed, decode


class Handler(socketserver.BaseRequestHandler):
    """One request."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            data, who = b"", f"{self.client_address[0]}:{self.client_address[1]} directly"
            header = None
            while b"\r\n\r\n" not in data[header.length if header else 0 :]:
                part = self.request.recv(65536)
                if not part:
                    return
                data += part
                with contextlib.suppress(Malformed):
                    header = header or decode(data)
            if header is not None and header.source is not None:
                who = f"{header.source} by proxy"
            port = self.request.getsockname()[1]
            self.request.sendall(f"HTTP/1.0 200 OK\r\n\r\n{port} {who}".encode())


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    servers = [Server(("127.0.0.1", int(port)), Handler) for port in sys.argv[1:]]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
