# SPDX-License-Identifier: Apache-2.0
"""All sources merged into one tree of sections, which can say where each value stands.

Invariant: a name, or a section without names, is defined in exactly one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fairlead.config.findings import Findings, Place, shown, step
from fairlead.config.reader import Map, Seq, place_of
from fairlead.config.schema.document import NAMED, SECTIONS

Loc = Sequence[str | int]


class Entry(NamedTuple):
    """One named thing, or one section without names."""

    source: int
    key_mark: int
    mark: int
    value: object


class Tree:
    """Sections by name; ``settings`` are the sections that hold no names."""

    def __init__(self) -> None:
        self.named: dict[str, dict[str, Entry]] = {section: {} for section in NAMED}
        self.settings: dict[str, Entry] = {}

    def plain_settings(self) -> dict[str, object]:
        """What the schema of the settings takes."""
        return {name: entry.value for name, entry in self.settings.items()}

    def locate(self, loc: Loc, *, key: bool = False) -> tuple[Place, str]:
        """Place and path of what ``loc`` names.

        A key that is missing stands where its mapping is named; what a shorthand left out, where the shorthand stands.
        Elements that begin with NUL are no keys of the file and are passed over; pydantic's ``[key]`` is the key.

        Args:
            loc: Keys and indexes, beginning with the section.
            key: Return the place of the key instead of that of its value.
        """
        section = str(loc[0])
        if section in self.named:
            if len(loc) == 1 or str(loc[1]) not in self.named[section]:
                return Place(0, 0, 0), section
            entry, rest, path = self.named[section][str(loc[1])], loc[2:], section + step(str(loc[1]))
        elif section in self.settings:
            entry, rest, path = self.settings[section], loc[1:], section
        else:
            return Place(0, 0, 0), section
        key_mark, mark, value = entry.key_mark, entry.mark, entry.value
        for element in rest:
            if isinstance(element, int):
                if isinstance(value, Seq) and element < len(value):
                    key_mark = mark = value.marks[element]
                    value = value[element]
                    path += f"[{element}]"
            elif element == "[key]":
                key = True
            elif not element.startswith("\0"):
                if not isinstance(value, Map):
                    break
                path += step(element)
                if element not in value:
                    mark = key_mark
                    break
                key_mark, mark = value.marks[element]
                value = value[element]
        return place_of(entry.source, key_mark if key else mark), path


def merge(documents: Mapping[int, Map], found: Findings) -> Tree:
    """Merge documents, given by the index of their source, by name."""
    tree = Tree()
    for source, root in documents.items():
        for section, value in root.items():
            key_mark, mark = root.marks[section]
            if section not in SECTIONS:
                hint = found.suggestion(section, SECTIONS) or f"; allowed are: {', '.join(SECTIONS)}"
                found.error(place_of(source, key_mark), "", f"unknown key {shown(section)}{hint}")
            elif section in NAMED:
                _merge_named(tree.named[section], section, Entry(source, key_mark, mark, value), found)
            elif section in tree.settings:
                first = tree.settings[section]
                where = found.written(place_of(first.source, first.key_mark))
                found.error(place_of(source, key_mark), section, f"is defined twice; first at {where}")
            elif value is not None or section == "hash_seed":
                tree.settings[section] = Entry(source, key_mark, mark, value)
    return tree


def _merge_named(into: dict[str, Entry], section: str, entry: Entry, found: Findings) -> None:
    items = entry.value
    if items is None:
        return
    if not isinstance(items, Map):
        found.error(place_of(entry.source, entry.mark), section, f"{shown(items)} is not allowed here; write a mapping")
        return
    for name, value in items.items():
        key_mark, mark = items.marks[name]
        if name in into:
            first = into[name]
            where = found.written(place_of(first.source, first.key_mark))
            message = f"{shown(name)} is defined twice; first at {where}"
            found.error(place_of(entry.source, key_mark), section + step(name), message)
        else:
            into[name] = Entry(entry.source, key_mark, mark, value)
