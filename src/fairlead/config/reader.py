# SPDX-License-Identifier: Apache-2.0
"""YAML text to dicts, lists and strings that know where they stand.

Invariants: scalars stay text (the schema types them, so ``no`` or ``1:30`` are no traps of YAML 1.1); depth, number of
values and what aliases expand to are bounded, therefore so are time and memory. libyaml's events are read one by one
instead of its node trees: four times faster, and a hostile file is given up early.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from fairlead.config.expand import expand
from fairlead.config.findings import Findings, Place, Refused, shown, step

MAX_DEPTH = 32
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
MAX_VALUES = 1_000_000  # a file of 8 MiB with 10 000 services of 10 servers has about 700 000
_SHIFT = 24  # a mark is line << 24 | column, both 0-based; a file of 8 MiB has fewer than 2 ** 24 of either
NOWHERE = -1 << _SHIFT  # the mark of what stands in no file: line 0
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))


_MERGE = "\0<<"  # a key that no file can hold


class Map(dict[str, object]):
    """A mapping; ``marks[key]`` is (mark of the key, mark of the value)."""

    __slots__ = ("marks",)

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[str, tuple[int, int]] = {}


class Seq(list[object]):
    """A list; ``marks[i]`` is the mark of item i."""

    __slots__ = ("marks",)

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[int] = []


class _Events(Protocol):
    def get_event(self) -> Event: ...


class _GiveUp(Exception):
    """The file cannot be read further."""


def place_of(source: int, mark: int) -> Place:
    """The 1-based place of a mark."""
    return Place(source, (mark >> _SHIFT) + 1, (mark & ((1 << _SHIFT) - 1)) + 1)


def read(source: int, text: str, environment: Mapping[str, str], found: Findings) -> Map | None:
    """Return the one document in ``text``, or None when it cannot be read; findings say why."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the pure one where PyYAML was built without libyaml
    builder = _Builder(source, environment, found)
    try:
        return builder.build(loader(text))
    except _GiveUp:
        return None
    except yaml.MarkedYAMLError as error:
        found.error(*_syntax(source, error, text))
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: the pure parser converts hostile numbers in directives and escapes without looking.
        found.error(
            Place(source, 1, 1), "", f"not valid YAML: {str(error).splitlines()[0] if str(error) else 'unreadable'}"
        )
    return None


def _syntax(source: int, error: yaml.MarkedYAMLError, text: str) -> tuple[Place, str, str]:
    """Place, path and message of a syntax error."""
    problem, context = error.problem or "", error.context or ""
    mark, begin = error.problem_mark or error.context_mark, error.context_mark
    if "maximum nesting depth" in problem and mark is not None:
        # libyaml looks ahead for keys and, from 0.2.6 on, gives up at its own limit before we have seen the events.
        return Place(source, mark.line + 1, mark.column + 1), "", _TOO_DEEP
    lines = text.splitlines() or [""]
    message = f"not valid YAML: {problem}"
    if begin is not None and begin.line < len(lines):
        message += f" {context} that begins in line {begin.line + 1}"
    if mark is None:
        return Place(source, 1, 1), "", message
    if mark.line >= len(lines):
        message += "; the file ends too early"
        mark = begin if begin is not None and begin.line < len(lines) else None
        line, column = (mark.line, mark.column) if mark is not None else (len(lines) - 1, len(lines[-1]))
        return Place(source, line + 1, column + 1), "", message
    return Place(source, mark.line + 1, mark.column + 1), "", message + _hint(problem, lines[mark.line], mark.column)


def _hint(problem: str, line: str, column: int) -> str:
    """What to do about a syntax error at ``column`` of ``line``."""
    if line[column : column + 1] == "\t":
        return "; indent with spaces, not with tabs"
    if "${" in line[max(0, column - 2) : column + 1]:
        return "; quote ${NAME} inside of { } and [ ]"
    if "mapping values are not allowed" in problem:
        return "; quote a text that contains `: `, and check the indentation of this line and the one before"
    if "cannot start any token" in problem:
        return "; quote a text that begins with this character"
    return ""


class _Builder:
    """Turns events into Map, Seq, str and None."""

    def __init__(self, source: int, environment: Mapping[str, str], found: Findings) -> None:
        self._source = source
        self._environment = environment
        self._found = found
        self._values = 0
        # anchor -> (value, number of values in it); None while its collection is still open
        self._anchors: dict[str, tuple[object, int] | None] = {}
        self._top: Map | Seq | None = None
        self._key: str | None = None
        self._key_mark = 0
        self._merges: dict[int, list[tuple[Map, int]]] = {}
        self._root: object = None
        self._documents = 0
        # Frames of open collections: (outer collection, its pending key and mark, own mark, anchor, values before).
        self._stack: list[tuple[Map | Seq | None, str | None, int, int, str | None, int]] = []

    def build(self, events: _Events) -> Map:
        """Read all events."""
        stack = self._stack
        while True:
            event = events.get_event()
            if isinstance(event, ScalarEvent):
                self._scalar(event)
            elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
                mark = self._open(event, len(stack))
                stack.append((self._top, self._key, self._key_mark, mark, event.anchor, self._values))
                self._top = Map() if isinstance(event, MappingStartEvent) else Seq()
                self._key = None
            elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
                closed = self._top
                if type(closed) is Map:
                    self._merge(closed)
                self._top, self._key, self._key_mark, mark, anchor, before = stack.pop()
                if anchor is not None:
                    self._anchors[anchor] = (closed, self._values - before)
                self._put(closed, mark)
            elif isinstance(event, AliasEvent):
                self._alias(event)
            elif isinstance(event, DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    self._give_up(_mark(event), "a second document begins here; a configuration file holds one")
            elif isinstance(event, StreamEndEvent):
                return self._document()

    def _document(self) -> Map:
        root = self._root
        if type(root) is Map:
            return root
        if self._documents == 0 or root is None:
            return Map()
        self._give_up(0, "the file must be a mapping with keys such as `services:` and `pools:`")
        raise AssertionError

    def _scalar(self, event: ScalarEvent) -> None:
        text: str = event.value
        mark = _mark(event)
        value: object = text
        if "$" in text:
            try:
                value = text = expand(text, self._environment)
            except Refused as error:
                self._found.spoil(place_of(self._source, mark), self._path(), str(error))
        if event.tag is not None:
            self._tag(event.tag, mark)
        plain = not event.style
        if type(self._top) is Map and self._key is None:
            if event.anchor is not None:
                self._anchors[event.anchor] = (text, 1)
            self._count(1, mark)
            self._begin(text, mark, merge=plain and text == "<<")
            return
        if plain and text in _NULLS:
            value = None
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        self._count(1, mark)
        self._put(value, mark)

    def _begin(self, key: str, mark: int, *, merge: bool) -> None:
        """A key of the open mapping was read."""
        self._key, self._key_mark = (_MERGE if merge else key), mark

    def _open(self, event: MappingStartEvent | SequenceStartEvent, depth: int) -> int:
        """A collection begins; return its mark."""
        mark = _mark(event)
        if type(self._top) is Map and self._key is None:
            self._give_up(
                mark, "a key must be a word, not a mapping or a list; quote a key that begins with `{` or `[`"
            )
        if depth >= MAX_DEPTH:
            self._give_up(mark, _TOO_DEEP)
        if event.tag is not None:
            self._tag(event.tag, mark)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._count(1, mark)
        return mark

    def _put(self, value: object, mark: int) -> None:
        """A value is complete: put it into the collection that is open."""
        top = self._top
        if top is None:
            self._root = value
        elif type(top) is Seq:
            top.append(value)
            top.marks.append(mark)
        else:
            assert type(top) is Map
            key, self._key = self._key, None
            assert key is not None
            if key == _MERGE:
                self._remember(top, value, mark)
            elif key in top:
                first = place_of(self._source, top.marks[key][0])
                place = place_of(self._source, self._key_mark)
                self._found.spoil(place, "", f"key {shown(key)} stands here a second time; first in line {first.line}")
            else:
                top[key] = value
                top.marks[key] = (self._key_mark, mark)

    def _alias(self, event: AliasEvent) -> None:
        mark = _mark(event)
        name = event.anchor or ""
        if name not in self._anchors:
            self._give_up(mark, f"alias {shown('*' + name)} has no anchor {shown('&' + name)} before it")
        known = self._anchors[name]
        if known is None:
            self._give_up(mark, f"alias {shown('*' + name)} stands inside the value that it repeats")
            raise AssertionError
        value, size = known
        self._count(size, mark)
        if type(self._top) is Map and self._key is None:
            if not isinstance(value, str):
                self._give_up(mark, f"alias {shown('*' + name)} is no word, so it cannot be a key")
            self._begin(str(value), mark, merge=False)
            return
        self._put(value, mark)

    def _remember(self, top: Map, value: object, mark: int) -> None:
        """Keep what ``<<`` names until the mapping ends: its own keys win wherever they stand."""
        parts = value if type(value) is Seq else [value]
        if not all(type(part) is Map for part in parts):
            self._found.error(
                place_of(self._source, mark), self._path(), "`<<` merges a mapping, or a list of mappings"
            )
            return
        self._merges.setdefault(id(top), []).extend((part, mark) for part in parts if type(part) is Map)

    def _merge(self, target: Map) -> None:
        for part, mark in self._merges.pop(id(target), ()):
            self._count(len(part), mark)
            for key, value in part.items():
                if key not in target:
                    target[key] = value
                    target.marks[key] = part.marks[key]

    def _count(self, values: int, mark: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            self._give_up(mark, f"more than {MAX_VALUES} values (aliases count as what they repeat); split the file")

    def _tag(self, tag: str, mark: int) -> None:
        self._found.error(
            place_of(self._source, mark), self._path(), f"tag {shown(tag)}: tags are not used here; remove it"
        )

    def _path(self) -> str:
        """Path of the value that is being read."""
        frames = [(outer, key) for outer, key, *_ in self._stack] + [(self._top, self._key)]
        path = ""
        for container, key in frames:
            if type(container) is Seq:
                path += f"[{len(container)}]"
            elif key is not None and key != _MERGE:
                path += step(key)
        return path.removeprefix(".")

    def _give_up(self, mark: int, message: str) -> None:
        self._found.error(place_of(self._source, mark), "", message)
        raise _GiveUp


def _mark(event: Event) -> int:
    start: Any = event.start_mark
    mark: int = start.line << _SHIFT | start.column
    return mark
