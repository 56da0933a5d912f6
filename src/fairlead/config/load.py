# SPDX-License-Identifier: Apache-2.0
"""Text in, a Configuration or all that is wrong with it out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead.config.build import build
from fairlead.config.checks import check
from fairlead.config.findings import Enough, Findings, Place
from fairlead.config.gaps import refuse
from fairlead.config.reader import Map, read
from fairlead.config.schema.document import Draft
from fairlead.config.text import Unreadable, decode
from fairlead.config.tree import Tree, merge
from fairlead.config.validate import validate
from fairlead.errors import ConfigError, Problem
from fairlead.model.configuration import Configuration


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its name as the user knows it, and its bytes, read once (what is checked is what is applied, F50)."""

    name: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """A usable configuration, and what is odd about it."""

    configuration: Configuration
    warnings: tuple[Problem, ...]


def load(sources: Sequence[Source], environment: Mapping[str, str]) -> Loaded:
    """Return the configuration that ``sources`` define together.

    Args:
        sources: The main file first, then those of ``conf.d`` in the order of their names.
        environment: What ``${NAME}`` may name.

    Raises:
        ConfigError: With every problem, in file order.
    """
    found = Findings([source.name for source in sources])
    draft = Draft()
    try:
        documents, complete = _read_all(sources, environment, found)
        if complete and not any(documents.values()):
            found.error(Place(0, 1, 1), "", "the configuration is empty; write `services: {}` if that is meant")
        draft = _examine(merge(documents, found), found, complete=complete)
    except Enough:
        pass
    if found.failed:
        raise ConfigError(found.errors())
    return Loaded(build(draft, digest(sources)), found.warnings())


def digest(sources: Sequence[Source]) -> str:
    """SHA-256 in hex: of one file what ``sha256sum FILE`` prints, of several that of the lines it prints for them."""
    sums = [hashlib.sha256(source.text).hexdigest() for source in sources]
    if len(sums) == 1:
        return sums[0]
    lines = "".join(f"{total}  {source.name}\n" for total, source in zip(sums, sources, strict=True))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _read_all(
    sources: Sequence[Source], environment: Mapping[str, str], found: Findings
) -> tuple[dict[int, Map], bool]:
    """The documents that can be read, and whether these are all."""
    documents: dict[int, Map] = {}
    for index, source in enumerate(sources):
        try:
            text = decode(source.text)
        except Unreadable as error:
            found.error(Place(index, error.line, error.column), "", str(error))
            continue
        root = read(index, text, environment, found)
        if root is not None:
            documents[index] = root
    return documents, len(documents) == len(sources)


def _examine(tree: Tree, found: Findings, *, complete: bool) -> Draft:
    """Everything that can be said about ``tree``; names are looked up only when every source could be read."""
    draft = validate(tree, found)
    refuse(draft, tree, found)
    if complete:
        check(draft, tree, found)
    return draft
