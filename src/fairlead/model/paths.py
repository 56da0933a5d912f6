# SPDX-License-Identifier: Apache-2.0
"""Where things lie by default: the configuration file, the API socket, the runtime directory.

Invariant: nothing here touches a disk or reads the environment; both arrive as arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairlead.errors import FairleadError

DEFAULT_FILE = Path("/etc/fairlead/fairlead.yaml")
ROOT_SOCKET = Path("/run/fairlead/api.sock")
SOCKET_VARIABLE = "FAIRLEAD_SOCKET"


def named_socket(environment: Mapping[str, str]) -> Path | None:
    """The API socket that ``FAIRLEAD_SOCKET`` names, or None when it names none."""
    named = environment.get(SOCKET_VARIABLE)
    return Path(named) if named else None


def default_socket(environment: Mapping[str, str], is_root: bool) -> Path:
    """The API socket when no option and no configuration names one.

    Raises:
        FairleadError: An ordinary user without ``XDG_RUNTIME_DIR``.
    """
    if named := named_socket(environment):
        return named
    if is_root:
        return ROOT_SOCKET
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "fairlead" / "api.sock"
    raise FairleadError(
        "no place for the API socket is known, because XDG_RUNTIME_DIR is not set; "
        f"name one with --socket PATH or {SOCKET_VARIABLE}"
    )


def runtime_directory(socket: Path) -> Path:
    """Directory of the lock, the saved state and the workers' sockets, beside the API socket.

    ``api.sock`` gives ``api.d``; a name without the suffix ``.sock`` gets ``.d`` appended.
    """
    return socket.with_suffix(".d") if socket.suffix == ".sock" else socket.with_name(socket.name + ".d")
