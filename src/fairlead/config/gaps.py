# SPDX-License-Identifier: Apache-2.0
"""What configuration files may say and this version cannot do yet: one table, which shrinks.

Invariant: a value in this table is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fairlead.config.findings import Findings
from fairlead.config.schema.document import Draft
from fairlead.config.tree import Loc, Tree
from fairlead.model.service import Engine


class Gap(NamedTuple):
    """What stands at ``path`` is not supported when it is one of ``values``, or, without these, when it is set at all.

    ``*`` in ``path`` is every item of a list.
    """

    path: tuple[str, ...]
    name: str
    values: tuple[object, ...] = ()

    def applies(self, value: object) -> bool:
        """Whether ``value`` is one that this version cannot do."""
        return value in self.values if self.values else bool(value)


NAMED_GAPS: dict[str, tuple[Gap, ...]] = {
    "services": (Gap(("engine",), "forwarding by IPVS", (Engine.LVS,)),),
}

SECTION_GAPS: tuple[str, ...] = ("bgp",)

SETTING_GAPS: tuple[Gap, ...] = (
    Gap(("api", "listen"), "the API on TCP"),
    Gap(("api", "token_file"), "the API on TCP"),
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
            said = f"`{value}`: " if gap.values else ""
            found.error(place, path, f"{said}{gap.name} is not supported yet by this version")


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
