# SPDX-License-Identifier: Apache-2.0
"""What configuration files may say and this version cannot do yet: one table, which shrinks.

Invariant: a value in this table is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fairlead.config.findings import Findings
from fairlead.config.schema.document import Draft
from fairlead.config.schema.health import Through
from fairlead.config.tree import Loc, Tree
from fairlead.model.net import Protocol
from fairlead.model.pool import MonitorType
from fairlead.model.service import Engine, Forwarding, ProxyHeader


class Gap(NamedTuple):
    """``name`` (with the value as ``{}``) is not supported where ``applies``; ``*`` in ``path`` is every item."""

    path: tuple[str, ...]
    name: str
    applies: Callable[[Any], bool]


def _is(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


def _set(value: Any) -> bool:
    return value is not None


NAMED_GAPS: dict[str, tuple[Gap, ...]] = {
    "services": (
        Gap(("protocol",), "`protocol: {}`", _is(Protocol.UDP)),
        Gap(
            ("forwarding",),
            "`forwarding: {}`",
            _is(Forwarding.NAT, Forwarding.FULLNAT, Forwarding.DSR, Forwarding.TUNNEL),
        ),
        Gap(("engine",), "`engine: {}`", _is(Engine.XDP, Engine.LVS)),
        Gap(("transparent",), "`transparent: true`", _is(True)),
        Gap(("proxy_protocol", "accept"), "the PROXY protocol", _is(True)),
        Gap(("proxy_protocol", "send"), "the PROXY protocol", _is(ProxyHeader.V1, ProxyHeader.V2)),
    ),
    "pools": (
        Gap(
            ("health", "*", "type"),
            "health type `{}`",
            _is(MonitorType.UDP, MonitorType.DNS, MonitorType.ICMP, MonitorType.GRPC, MonitorType.EXEC),
        ),
        Gap(("health", "*", "through"), "`through: service`", _is(Through.SERVICE)),
        Gap(("health", "*", "send_proxy"), "the PROXY protocol", _is(ProxyHeader.V1, ProxyHeader.V2)),
        Gap(("passive",), "passive health checking", _set),
        Gap(("agent",), "`agent`", _set),
        Gap(("slow_start",), "`slow_start`", lambda value: value > 0),
    ),
}

SECTION_GAPS: tuple[str, ...] = ("vips", "vrrp", "xdp", "bgp")

SETTING_GAPS: tuple[Gap, ...] = (
    Gap(("api", "listen"), "an API on TCP", _set),
    Gap(("api", "token_file"), "an API on TCP", _set),
)


def refuse(draft: Draft, tree: Tree, found: Findings) -> None:
    """Record an error for each thing that this version cannot do yet."""
    for section, gaps in NAMED_GAPS.items():
        for name, part in getattr(draft, section).items():
            for gap in gaps:
                _refuse(gap, part, (section, name), tree, found)
    for gap in SETTING_GAPS:
        _refuse(gap, draft.settings, (), tree, found)
    for section in SECTION_GAPS:
        loc = _used(section, tree)
        if loc:
            place, _ = tree.locate(loc, key=True)
            found.error(place, section, f"`{section}:` is not supported yet by this version")


def _used(section: str, tree: Tree) -> Loc:
    """Where a section first says something, or an empty loc."""
    if section in tree.named:
        return next(((section, name) for name in tree.named[section]), ())
    return (section,) if section in tree.settings and tree.settings[section].value else ()


def _refuse(gap: Gap, part: Any, prefix: Loc, tree: Tree, found: Findings) -> None:
    for loc, value in _values(part, gap.path):
        if gap.applies(value):
            place, path = tree.locate((*prefix, *loc))
            found.error(place, path, f"{gap.name.format(value)} is not supported yet by this version")


def _values(part: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value that ``path`` names below ``part``; keys that a model does not have are passed over."""
    if not path:
        yield (), part
    elif path[0] == "*":
        for index, item in enumerate(part):
            for loc, value in _values(item, path[1:]):
                yield (index, *loc), value
    elif hasattr(part, path[0]):
        for loc, value in _values(getattr(part, path[0]), path[1:]):
            yield (path[0], *loc), value
