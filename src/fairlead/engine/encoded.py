# SPDX-License-Identifier: Apache-2.0
"""JSON of mappings that share with their successors: what did not change since the last time is not encoded again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import starmap
from typing import Any, Generic, TypeVar

from fairlead.model.shared import Shared, shared

K = TypeVar("K")
V = TypeVar("V")

to_json = json.JSONEncoder(separators=(",", ":")).encode


class Encoded(Generic[K, V]):
    """The text of a mapping whose entries change a few at a time.

    Args:
        plain: Makes what JSON knows of an entry.
    """

    def __init__(self, plain: Callable[[K, V], tuple[str, Any]]) -> None:
        self._plain = plain
        self._groups = Shared[K, V]().groups
        self._texts = tuple(tuple("" for _ in group) for group in self._groups)  # of the entries of each part
        self._joined = tuple("" for _ in self._groups)  # and of each group

    def texts(self, entries: Mapping[K, V]) -> list[str]:
        """An object with these entries, in pieces."""
        groups, known = shared(entries).groups, self._groups
        self._texts = tuple(
            texts if group is held else self._group(group, held, texts)
            for group, held, texts in zip(groups, known, self._texts, strict=True)
        )
        self._joined = tuple(
            text if group is held else ",".join(filter(None, texts))
            for group, held, texts, text in zip(groups, known, self._texts, self._joined, strict=True)
        )
        self._groups = groups
        return ["{", ",".join(filter(None, self._joined)), "}"]

    def _group(
        self, group: tuple[Mapping[K, V], ...], held: tuple[Mapping[K, V], ...], texts: tuple[str, ...]
    ) -> tuple[str, ...]:
        return tuple(
            text if part is like else to_json(dict(starmap(self._plain, part.items())))[1:-1]
            for part, like, text in zip(group, held, texts, strict=True)
        )
