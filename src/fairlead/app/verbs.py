# SPDX-License-Identifier: Apache-2.0
"""The verbs that run here instead of asking a daemon: run, demo, check, doctor."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fairlead.app.cleanup import clean_up
from fairlead.app.daemon import Daemon, serve
from fairlead.app.doctor import examine
from fairlead.cli.local import DemoOptions, RunOptions
from fairlead.config.load import Loaded, Source, load
from fairlead.config.options import from_options
from fairlead.demo.play import Play, Stage, configuration
from fairlead.demo.servers import DemoServers
from fairlead.engine import logs
from fairlead.engine.sources import read_sources
from fairlead.model.configuration import Configuration
from fairlead.model.host import Finding
from fairlead.model.paths import SOCKET_VARIABLE, default_socket


def check(file: Path) -> Configuration:
    """Load ``file``; touch nothing.

    Raises:
        ConfigError: It is invalid.
    """
    loaded = _load(file)
    for warning in loaded.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return loaded.configuration


def doctor(configuration: Configuration, as_real_server: bool) -> Sequence[Finding]:
    """Examine this host; change nothing."""
    return examine(configuration, as_real_server=as_real_server)


def run(options: RunOptions) -> int:
    """Run the daemon until a signal ends it.

    Raises:
        ConfigError: The configuration is invalid.
        FairleadError: It cannot start.
    """
    # A journal stamps lines itself; JOURNAL_STREAM is set when standard error goes there.
    logs.configure(timestamps="JOURNAL_STREAM" not in os.environ)
    if options.file is None:
        loaded = Loaded(from_options(options.listen, options.servers), ())
        return asyncio.run(serve(Daemon(loaded, None, None, _socket(options.socket, loaded))))
    file = options.file
    gc.disable()  # until the daemon is ready: next to nothing is garbage before
    loaded = _load(file)
    return asyncio.run(serve(Daemon(loaded, partial(read_again, file), str(file), _socket(options.socket, loaded))))


async def read_again(file: Path) -> Loaded:
    """Read the configuration beside what the daemon does; nothing of it is garbage, and none is looked for meanwhile.

    Looking for some among a million new objects stalled the daemon for seconds with 10,000 services.

    Raises:
        ConfigError: The configuration is invalid.
    """
    gc.collect()  # what is garbage by now must not be kept with the rest
    gc.disable()
    try:
        return await asyncio.to_thread(_load, file)
    finally:
        gc.freeze()
        gc.enable()


def cleanup(socket: Path) -> list[str]:
    """Remove what a daemon left; what that was.

    Raises:
        FairleadError: A daemon runs, or something cannot be removed.
    """
    return asyncio.run(clean_up(socket))


def demo(options: DemoOptions) -> int:
    """Run real servers, a client and the daemon until Ctrl-C.

    Raises:
        FairleadError: It cannot start.
    """
    terminal = sys.stdout.isatty()
    ports = {f"server-{number}": 0 for number in range(1, options.servers + 1)}
    with tempfile.TemporaryDirectory(prefix="fairlead-demo-") as directory:
        socket = options.socket or Path(directory) / "api.sock"
        # The picture owns the terminal; what happens is in it.
        with (Path(directory) / "log").open("w") as log, DemoServers(ports) as servers:
            logs.configure(timestamps=True, out=log if terminal else sys.stderr)
            text = configuration(options.listen, servers.ports)
            loaded = load([Source("<demo>", text.encode())], {})
            stage = Stage(
                out=sys.stdout,
                width=lambda: shutil.get_terminal_size().columns,
                is_terminal=terminal,
                colour=terminal and "NO_COLOR" not in os.environ,
                program=f"{SOCKET_VARIABLE}={socket} {_program()}",
                listen=loaded.configuration.services["web"].listen[0],
            )
            return asyncio.run(serve(Daemon(loaded, None, None, socket), Play(servers, stage).run))


def _load(file: Path) -> Loaded:
    return load(read_sources(file), os.environ)


def _socket(option: Path | None, loaded: Loaded) -> Path:
    if option is not None:
        return option
    named = loaded.configuration.api.socket
    return Path(named) if named is not None else default_socket(os.environ, os.geteuid() == 0)


def _program() -> str:
    """How the user may call this program again."""
    program = Path(sys.argv[0])
    return program.name if shutil.which(program.name) else str(program)
