# SPDX-License-Identifier: Apache-2.0
"""The outermost call: whatever comes out of a verb becomes one message and one exit code.

Invariant: no error reaches the user as a traceback; FAIRLEAD_DEBUG=1 asks for it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click

from fairlead.cli.exits import FAILED, FINE, INTERRUPTED, INVALID, NO_DAEMON, READER_GONE, NoDaemon
from fairlead.cli.output import abandon_stdout
from fairlead.errors import ConfigError, FairleadError

DEBUG_VARIABLE = "FAIRLEAD_DEBUG"


class Program(click.Group):
    """A group whose errors become one line on standard error and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the program; by default end the process with its exit code."""
        arguments = list(args) if args is not None else None
        prog_name = prog_name or "fairlead"
        if not standalone_mode:
            return super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)
        call = super().main
        sys.exit(guarded(lambda: call(arguments, prog_name, complete_var, standalone_mode=False, **extra)))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - given by click
        """The verbs in the order in which one meets them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; click itself would turn a reader that has gone into a plain failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return reader_gone()


def guarded(call: Callable[[], Any]) -> int:
    """Run ``call``; the exit code of the process."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")  # a server's answer never stops output
    try:
        result = call()
        sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the last stop before the user
        return _explain(error)
    return result if isinstance(result, int) else FINE


def reader_gone() -> int:
    """Exit code when nobody reads the output any more."""
    abandon_stdout()
    return READER_GONE


def _explain(error: BaseException) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    match error:
        case click.ClickException():
            error.show()
            return error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():
            return reader_gone()
        case ConfigError():
            click.echo(str(error), err=True)
            return INVALID
        case FairleadError():
            click.echo(f"fairlead: {error}", err=True)
            return NO_DAEMON if isinstance(error, NoDaemon) else FAILED
        case OSError():
            if error.filename is None:  # what could not be written would be tried again at the end: exit code 120
                abandon_stdout()
            click.echo(f"fairlead: {error.strerror or error}: {error.filename or 'standard output'}", err=True)
            return FAILED
        case _:
            click.echo(
                f"fairlead: an error in fairlead itself: {type(error).__name__}: {error}; "
                f"{DEBUG_VARIABLE}=1 shows where, please report it",
                err=True,
            )
            return FAILED
