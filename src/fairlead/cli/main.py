# SPDX-License-Identifier: Apache-2.0
"""The program ``fairlead``: its verbs, options and exit codes.

Exit codes: 0 fine, 1 runtime error, 2 wrong usage, 3 invalid configuration, 4 no daemon answers; as a shell
counts signals, 130 interrupted and 141 when the reader of the output has gone.
Invariant: what a verb does not need is not imported before it runs, for ``show`` starts in less than 150 ms.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fairlead import __version__
from fairlead.cli.exits import FAILED, FINE, INVALID
from fairlead.cli.guard import Program
from fairlead.cli.local import DemoOptions, LocalVerbs, RunOptions
from fairlead.cli.output import FORMATS, as_yaml, colour_wanted
from fairlead.errors import ConfigError
from fairlead.model.paths import DEFAULT_FILE, default_socket, named_socket
from fairlead.model.reasons import Severity

if TYPE_CHECKING:
    from fairlead.model.configuration import Configuration
    from fairlead.model.host import Finding

Verb = TypeVar("Verb", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_KINDS = ("services", "servers", "connections", "health", "vips", "vrrp", "events", "status")


def build(local: LocalVerbs) -> click.Group:
    """The whole command line; ``local`` does what needs no daemon."""

    @click.group("fairlead", cls=Program, context_settings=CONTEXT)
    @click.version_option(__version__, prog_name="fairlead", message="%(prog)s %(version)s")
    def program() -> None:
        """A layer-4 load balancer: offers services, spreads connections over real servers, checks their health.

        Exit codes: 0 fine, 1 runtime error, 2 wrong usage, 3 invalid configuration, 4 no daemon answers.
        """

    _add_local(program, local)
    _add_doctor(program, local)
    _add_show(program)
    for verb, meaning in (
        ("drain", "Give a server no new connections.\n\nThose it has live on until the drain_timeout of the pool."),
        ("ready", "Let a server take connections again.\n\nIt gets them as soon as its health allows."),
        ("maint", "Take a server out at once.\n\nIts connections are closed, and it is not probed any more."),
    ):
        _add_state(program, verb, meaning)
    _add_weight(program)
    _add_vip(program)
    _add_explain(program)
    _add_reload(program)
    return program


def _socket_option(verb: Verb) -> Verb:
    return click.option(
        "--socket",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="The daemon's API socket. Default: FAIRLEAD_SOCKET, else /run/fairlead/api.sock for root and "
        "$XDG_RUNTIME_DIR/fairlead/api.sock for others.",
    )(verb)


def _output_option(verb: Verb) -> Verb:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="json and yaml carry exact values; table is for people, also through a pipe.",
    )(verb)


def _dry_run_option(verb: Verb) -> Verb:
    return click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")(verb)


def _add_local(program: click.Group, local: LocalVerbs) -> None:
    @program.command()
    @click.argument("file", required=False, type=click.Path(path_type=Path))
    @click.option("--listen", metavar="ADDRESS:PORT", multiple=True, help="Offer one service here, without a file.")
    @click.option("--server", metavar="ADDRESS:PORT", multiple=True, help="A real server of that service.")
    @_socket_option
    def run(file: Path | None, listen: tuple[str, ...], server: tuple[str, ...], socket: Path | None) -> int:
        """Run the daemon in the foreground.

        FILE is its configuration, by default /etc/fairlead/fairlead.yaml.
        """
        if file is not None and (listen or server):
            raise click.UsageError("give either FILE, or --listen and --server")
        if bool(listen) != bool(server):
            raise click.UsageError("--listen and --server belong together: give at least one of each")
        chosen = None if listen else file or DEFAULT_FILE
        return local.run(RunOptions(chosen, listen, server, socket or named_socket(os.environ)))

    @program.command()
    @click.option("--listen", metavar="ADDRESS:PORT", default="127.0.0.1:8080", show_default=True)
    @click.option("--servers", type=click.IntRange(1, 20), default=3, show_default=True, help="How many to start.")
    @_socket_option
    def demo(listen: str, servers: int, socket: Path | None) -> int:
        """Try it: servers and a balancer on loopback.

        Starts small real HTTP servers and a load balancer in front of them, and shows how to play with it.
        """
        return local.demo(DemoOptions(listen, servers, socket or named_socket(os.environ)))

    @program.command()
    @click.argument("file", required=False, default=DEFAULT_FILE, type=click.Path(path_type=Path))
    @_output_option
    def check(file: Path, output: str) -> int:
        """Validate a configuration.

        Prints every error in FILE, by default /etc/fairlead/fairlead.yaml, and touches nothing.
        """
        return _check(local, file, output)

    @program.command()
    @_socket_option
    def cleanup(socket: Path | None) -> int:
        """Remove everything that was left in the kernel.

        For a daemon that was killed and is not to come back: its XDP programs and maps, and its VIPs, in this network
        namespace. Refused while a daemon runs.
        """
        removed = local.cleanup(socket or default_socket(os.environ, os.geteuid() == 0))
        for line in removed:
            click.echo(f"removed {line}")
        if not removed:
            click.echo("nothing was left")
        return FINE


def _check(local: LocalVerbs, file: Path, output: str) -> int:
    configuration = _loaded(local, file, output)
    if configuration is None:
        return INVALID
    if output != "table":
        click.echo(_encoded({"file": str(file), "valid": True, "problems": []}, output))
        return FINE
    pools = configuration.pools.values()
    counts = [
        _plural(len(configuration.services), "service"),
        _plural(len(pools), "pool"),
        _plural(sum(len(pool.servers) for pool in pools), "server"),
    ]
    click.echo(f"{file}: valid: {', '.join(counts)}")
    return FINE


def _loaded(local: LocalVerbs, file: Path, output: str) -> Configuration | None:
    """The configuration; None when it is invalid and that was printed in the form that was asked for."""
    try:
        return local.check(file)
    except ConfigError as error:
        if output == "table":
            raise
        problems = [dataclasses.asdict(problem) for problem in error.problems]
        click.echo(_encoded({"file": str(file), "valid": False, "problems": problems}, output))
        return None


def _add_doctor(program: click.Group, local: LocalVerbs) -> None:
    @program.command()
    @click.argument("file", required=False, default=DEFAULT_FILE, type=click.Path(path_type=Path))
    @click.option(
        "--real-server", is_flag=True, help="This machine is a server of a dsr or tunnel service in FILE, no balancer."
    )
    @_output_option
    def doctor(file: Path, real_server: bool, output: str) -> int:
        """Check this host; name what is wrong, and the fix.

        Looks at capabilities, kernel, sysctls, offloads, MTU, XDP programs of others and at who answers for the VIPs,
        for the services of FILE, by default /etc/fairlead/fairlead.yaml, in this network namespace. Needs no daemon
        and changes nothing. The exit code is 1 when a finding is an error.
        """
        configuration = _loaded(local, file, output)
        if configuration is None:
            return INVALID
        findings = local.doctor(configuration, real_server)
        _print_findings(findings, {"file": str(file), "role": "real_server" if real_server else "balancer"}, output)
        return FAILED if any(it.severity is Severity.ERROR for it in findings) else FINE


def _print_findings(findings: Sequence[Finding], about: dict[str, str], output: str) -> None:
    from fairlead.cli.findings import lines  # noqa: PLC0415 - only this verb needs tables

    if output == "table":
        click.echo("\n".join(lines(findings, colour=colour_wanted())))
        return
    listed = [
        {
            "name": it.name.value,
            "severity": it.severity.value,
            "subject": it.subject,
            "message": it.message,
            "fix": it.fix or None,
        }
        for it in findings
    ]
    click.echo(_encoded({**about, "findings": listed}, output))


def _add_show(program: click.Group) -> None:
    @program.command()
    @click.argument("what", required=False, type=click.Choice(_KINDS))
    @_output_option
    @click.option("-w", "--watch", is_flag=True, help="Every second again; json prints one line per change.")
    @click.option("--service", metavar="NAME", help="Only connections of this service.")
    @click.option("--server", metavar="POOL/SERVER", help="Only connections to this server.")
    @_socket_option
    def show(
        *, what: str | None, output: str, watch: bool, service: str | None, server: str | None, socket: Path | None
    ) -> None:
        """Show services, servers, health and more.

        Without an argument: all services with their servers.
        """
        from fairlead.cli import show as showing  # noqa: PLC0415 - only this verb needs tables

        if (service or server) and what != "connections":
            raise click.UsageError("--service and --server choose among connections: fairlead show connections ...")
        question = showing.Question(what or "overview", output, service, server)
        (showing.watch if watch else showing.show)(_client(socket), question)


def _add_state(program: click.Group, verb: str, meaning: str) -> None:
    @program.command(verb, help=meaning)
    @click.argument("server", metavar="POOL/SERVER")
    @_dry_run_option
    @_output_option
    @_socket_option
    def change(server: str, dry_run: bool, output: str, socket: Path | None) -> None:
        _change_server(server, {"admin": verb}, dry_run, output, socket)


def _add_weight(program: click.Group) -> None:
    @program.command()
    @click.argument("server", metavar="POOL/SERVER")
    @click.argument("weight", metavar="N", type=click.IntRange(0, 65535))
    @_dry_run_option
    @_output_option
    @_socket_option
    def weight(server: str, weight: int, dry_run: bool, output: str, socket: Path | None) -> None:
        """Set the weight of a server.

        With 0 it gets no new connections, and those it has live on.
        """
        _change_server(server, {"weight": weight}, dry_run, output, socket)


def _add_explain(program: click.Group) -> None:
    @program.command()
    @click.argument("client", metavar="CLIENT:PORT")
    @click.argument("vip", metavar="VIP:PORT")
    @click.option("--protocol", type=click.Choice(("tcp", "udp")), default="tcp", show_default=True)
    @click.option("--without", metavar="POOL/SERVER", help="Who would take it if this server were not there?")
    @_output_option
    @_socket_option
    def explain(*, client: str, vip: str, protocol: str, without: str | None, output: str, socket: Path | None) -> None:
        """Tell where a flow goes, and why, step by step.

        The answer comes from the live tables: the kernel's for nat, fullnat, dsr and tunnel.
        """
        from fairlead.cli.client import explain_target  # noqa: PLC0415 - as in _client

        query = {} if without is None else {"without": without}
        answer = _client(socket).get(explain_target(protocol, client, vip), query)
        if output != "table":
            click.echo(_encoded(answer, output))
            return
        for step in answer["steps"]:
            click.echo(f"{step['step']:>12}  {step['says']}")
        click.echo(f"{'answer':>12}  {answer['server'] or 'no server'}")
        if without is not None:
            click.echo(f"{'instead':>12}  {answer['instead'] or 'no server'}")


def _add_vip(program: click.Group) -> None:
    @program.command()
    @click.argument("action", type=click.Choice(("release", "claim")))
    @click.argument("vip", metavar="VIP")
    @_dry_run_option
    @_output_option
    @_socket_option
    def vip(action: str, vip: str, dry_run: bool, output: str, socket: Path | None) -> None:
        """Move a VIP to another node, or here.

        With release this node hands over and stays behind the others until claim. All VIPs of one owner move together.
        """
        from fairlead.cli.client import vip_target  # noqa: PLC0415 - as in _client

        _report(_client(socket).send("POST", vip_target(vip, action), _query(dry_run), None), dry_run, output)


def _add_reload(program: click.Group) -> None:
    @program.command()
    @_dry_run_option
    @_output_option
    @_socket_option
    def reload(dry_run: bool, output: str, socket: Path | None) -> None:
        """Read the configuration file again.

        An invalid file changes nothing and says why.
        """
        result = _client(socket).send("POST", "/v1/reload", _query(dry_run), None)
        _report(result, dry_run, output)


def _client(socket: Path | None) -> Any:
    from fairlead.cli.client import Client  # noqa: PLC0415 - http.client takes longer to import than all the rest

    return Client(socket or default_socket(os.environ, os.geteuid() == 0))


def _change_server(server: str, change: dict[str, Any], dry_run: bool, output: str, socket: Path | None) -> None:
    from fairlead.cli.client import server_target  # noqa: PLC0415 - as in _client

    result = _client(socket).send("PATCH", server_target(server), _query(dry_run), change)
    _report(result, dry_run, output)


def _query(dry_run: bool) -> dict[str, str]:
    return {"dry_run": "true"} if dry_run else {}


def _report(result: dict[str, Any], dry_run: bool, output: str) -> None:
    if output != "table":
        click.echo(_encoded(result, output))
        return
    for change in result["changes"]:
        click.echo(f"would change {change}" if dry_run else change)
    if not result["changes"]:
        click.echo("nothing to change")


def _encoded(value: Any, output: str) -> str:
    return as_yaml(value).rstrip("\n") if output == "yaml" else json.dumps(value, indent=2)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
