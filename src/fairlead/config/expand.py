# SPDX-License-Identifier: Apache-2.0
"""``${NAME}`` and ``${NAME:-default}`` in scalars. A value from the environment stays one scalar, whatever is in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fairlead.config.findings import Refused, shown

_REFERENCE = re.compile(r"\$(?:\$|\{([^}]*)\}?)")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Return ``text`` with its references replaced; ``$$`` is ``$``, any other ``$`` stands for itself.

    The default is used when the variable is unset or empty, as in a shell.

    Raises:
        Refused: A variable is not set and has no default, or a reference is malformed.
    """

    def value(found: re.Match[str]) -> str:
        reference = found.group()
        if reference == "$$":
            return "$"
        parts = _NAME.fullmatch(found.group(1))
        if parts is None or not reference.endswith("}"):
            raise Refused(f"{shown(reference)} is no reference; write ${{NAME}} or ${{NAME:-default}}, $$ for a dollar")
        name, default = parts.groups()
        known = environment.get(name)
        if known is None and default is None:
            raise Refused(f"environment variable {name} is not set; set it or write ${{{name}:-default}}")
        return (known or default) if default is not None else known or ""

    return _REFERENCE.sub(value, text)
