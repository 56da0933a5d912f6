# SPDX-License-Identifier: Apache-2.0
"""A real gRPC server with the standard health service: ``python grpc_server.py [PEM]`` prints its port and serves."""

from __future__ import annotations

import sys
import threading
from concurrent import futures
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    service = health.HealthServicer()
    service.set("sick", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    if len(sys.argv) > 1:
        pem = Path(sys.argv[1]).read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem, pem)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
