# SPDX-License-Identifier: Apache-2.0
"""The API on its unix socket, inside the agent's event loop.

Invariant: at no moment may others than user and group connect, and no socket on which somebody answers is removed.
uvicorn's own main loop is not used: it takes over signals and wakes ten times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import os
import socket
import stat
from pathlib import Path

from uvicorn.config import Config
from uvicorn.server import ServerState

from fairlead.api.app import Api
from fairlead.api.facade import Facade
from fairlead.api.protocol import IDLE_S, BoundedProtocol
from fairlead.errors import Conflict, FairleadError

SOCKET_MODE = 0o660
GROUP = "fairlead"  # whose members may read, when it exists and root runs the daemon
BACKLOG = 128
MAX_PATH = 107  # octets, sun_path of unix(7) without its NUL
MAX_HEAD = 16384  # octets of request line and headers


class ApiServer:
    """Serves a Facade at ``path`` from ``start`` to ``stop``."""

    def __init__(self, facade: Facade, path: Path) -> None:
        self._facade = facade
        self._path = path
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._api: Api | None = None
        self._inode = (0, 0)

    async def start(self) -> None:
        """Open the socket and serve.

        Raises:
            Conflict: Another daemon answers on it.
            FairleadError: It cannot be created there.
        """
        self._api = Api(self._facade)
        # Requests of clients are no warnings of the daemon; what fails in it is an error and stays.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        config = Config(
            self._api.app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(IDLE_S),
            h11_max_incomplete_event_size=MAX_HEAD,
        )
        config.load()
        listener = open_socket(self._path)
        found = self._path.lstat()
        self._inode = (found.st_dev, found.st_ino)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: BoundedProtocol(config, self._state, {}), sock=listener, backlog=BACKLOG
        )

    async def stop(self, grace_s: float = 2.0) -> None:
        """Remove the socket, let requests under way end for ``grace_s`` seconds, and cut off the rest."""
        if self._server is None or self._api is None:
            return
        self._unlink()
        self._server.close()
        self._server = None
        self._api.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=grace_s)
        for connection in list(self._state.connections):
            connection.transport.abort()
        if self._state.tasks:
            for task in self._state.tasks:
                task.cancel()
            await asyncio.wait(set(self._state.tasks), timeout=grace_s)

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._inode:
                self._path.unlink()


def open_socket(path: Path) -> socket.socket:
    """A socket that listens at ``path`` with mode 0660, in place of one that nobody serves any more.

    Raises:
        Conflict: Somebody answers there.
        FairleadError: The place cannot be used.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise FairleadError(
            f"the socket path {path} is longer than {MAX_PATH} octets; name a shorter one with --socket"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _listen(listener, path)
    except OSError as error:
        listener.close()
        raise FairleadError(
            f"cannot open the API socket {path}: {error.strerror}; name another place with --socket PATH"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _listen(listener: socket.socket, path: Path) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _remove_stale(path)
    # Linux makes the file with the mode of the socket's inode: it is never wider than 0660, whatever the umask.
    os.fchmod(listener.fileno(), SOCKET_MODE)
    listener.bind(str(path))
    path.chmod(SOCKET_MODE)
    _share_with_group(path)
    listener.listen(BACKLOG)


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FairleadError(f"{path} is there already and is not a socket; remove it or name another with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(str(path))
    if result in {0, errno.EAGAIN, errno.EPROTOTYPE}:
        raise Conflict(f"another daemon answers on {path}; stop it, or use --socket PATH to run several side by side")
    if result == errno.ECONNREFUSED:
        path.unlink()
    elif result != errno.ENOENT:
        raise OSError(result, os.strerror(result))


def _share_with_group(path: Path) -> None:
    """Let the group read when root runs the daemon; a service manager that sets the group needs nothing here."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
