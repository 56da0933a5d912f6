# SPDX-License-Identifier: Apache-2.0
"""The reference of the configuration file as Markdown. Invariant: all of it comes from the schema and its limits."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, get_args

from pydantic.fields import FieldInfo

from fairlead.config.forms import Form
from fairlead.config.gaps import NAMED_GAPS, SECTION_GAPS, SETTING_GAPS, Gap
from fairlead.config.reader import MAX_DEPTH, MAX_VALUES
from fairlead.config.schema.base import Part
from fairlead.config.schema.document import NAMED
from fairlead.config.schema.health import MONITORS, Http, Https, Monitor, Tcp
from fairlead.config.schema.node import Settings
from fairlead.config.text import MAX_BYTES
from fairlead.config.validate import parts

_HEAD = f"""\
<!-- Generated from src/fairlead/config/schema; change it there, then run `make docs`. -->
# Configuration file

One YAML file, by default `/etc/fairlead/fairlead.yaml`; the files `conf.d/*.yaml` beside it are merged with it by name.
A name defined twice is an error, and so is a key that is not described here.
Every problem is reported in one go as `file:line:column: path: what is wrong and what is allowed`.

**How values are read.** Only the schema gives a value its type, so none of YAML's traps apply: `off` and `no` are
words, `1:30` and `0777` are texts, and the name `no` is a name. Quotes are needed where YAML needs them: around a
text that begins with `[`, `{{`, `*` or `&`, and around one that contains `: ` or ` #`.
`null` (or nothing at all) is allowed only where this page says so, and for a whole section.

**Durations** are a whole number and a unit: `250ms`, `2s`, `5m`, `1h`. **Names** match `[a-z0-9][a-z0-9-]{{0,62}}`.

**Environment.** `${{NAME}}` in a key or value is replaced by the environment variable; `${{NAME:-default}}` takes the
default when the variable is unset or empty; without a default an unset variable is an error. `$$` is a dollar sign.
What the variable holds stays one value, whatever is in it.

**YAML.** UTF-8, one document per file, at most {MAX_BYTES >> 20} MiB, {MAX_VALUES} values and {MAX_DEPTH} levels.
Anchors and aliases work within a file, and so does `<<`, where a mapping's own keys win. Tags (`!!str`) are refused.
"""


def markdown() -> str:
    """Return the whole page."""
    sections = [_HEAD]
    for name, model in NAMED.items():
        sections += _section(f"{name}.NAME" if name != "vips" else "vips.ADDRESS/LENGTH", model)
        if name == "pools":
            sections += _monitors()
    sections += _settings()
    sections.append(_missing())
    return "\n".join(sections)


def _section(path: str, model: type[Part], known: frozenset[str] = frozenset()) -> Iterator[str]:
    """The table of one mapping, then those of the mappings in it; keys in ``known`` are described elsewhere."""
    yield f"## `{path}`\n\n{model.__doc__}\n"
    yield _table(model, known)
    for key, field in model.model_fields.items():
        if key in known or key == "health":
            continue
        for part in parts(_annotation(field)):
            below = path.partition("`")[0]  # without the type of a monitor
            yield from _section(f"{below}.{key}" + ("[]" if _is_list(field) else ""), part)


def _monitors() -> Iterator[str]:
    common = frozenset(Tcp.model_fields) - {"port", "send_proxy"}
    yield "## `pools.NAME.health`\n\nThe word `none`, the word of a type, one monitor, or a list of monitors.\n"
    yield "Keys of every type:\n"
    yield _table(Tcp, frozenset(Tcp.model_fields) - common)
    for kind, model in MONITORS.items():
        known = common | frozenset(Http.model_fields) if model is Https else common
        yield from _section(f"pools.NAME.health`, type `{kind}", model, known)


def _settings() -> Iterator[str]:
    yield "## Other keys\n"
    yield _table(
        Settings, frozenset(key for key, field in Settings.model_fields.items() if any(parts(field.annotation)))
    )
    for key, field in Settings.model_fields.items():
        for part in parts(field.annotation):
            if part.model_fields:
                yield from _section(key, part)


def _missing() -> str:
    lines = ["## Not supported yet by this version\n", "These are checked as above, then refused:\n"]
    for section, gaps in NAMED_GAPS.items():
        lines += [_gap(gap, f"{section}.NAME.") for gap in gaps]
    lines += [_gap(gap, "") for gap in SETTING_GAPS]
    lines += [f"- `{section}`: whatever it holds" for section in SECTION_GAPS]
    return "\n".join(lines) + "\n"


def _gap(gap: Gap, prefix: str) -> str:
    values = ", ".join(f"`{value}`" for value in gap.values) or "set"
    return f"- `{prefix}{'.'.join(gap.path).replace('.*', '')}` {values}: {gap.name}"


def _table(model: type[Part], known: frozenset[str]) -> str:
    rows = [
        f"| `{key}` | {_allowed(field)} | {_default(field)} | {field.description} |"
        for key, field in model.model_fields.items()
        if key not in known
    ]
    if not rows:
        return "No keys of its own.\n"
    return "\n".join(["| key | what it takes | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _annotation(field: FieldInfo) -> Any:
    """The annotation with its outermost metadata, which pydantic keeps apart."""
    return (field.annotation, *field.metadata)


def _is_list(field: FieldInfo) -> bool:
    return "list[" in str(field.annotation)


def _forms(annotation: Any) -> Iterator[Form]:
    if isinstance(annotation, Form):
        yield annotation
    for argument in annotation if isinstance(annotation, tuple) else get_args(annotation):
        yield from _forms(argument)


def _allowed(field: FieldInfo) -> str:
    if field.annotation == list[Monitor]:
        return "see below"
    found = [form.words for form in _forms(_annotation(field))]
    if any(parts(field.annotation)):
        return "a list of mappings or of ADDRESS:PORT, see below" if _is_list(field) else "see below"
    if str(field.annotation).startswith("dict["):
        return "a mapping of " + " to ".join(found)
    if _is_list(field) and "list" not in found[0]:
        return f"list: {found[0]}"
    return found[0]


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if field.is_required():
        return "required"
    if isinstance(extra, dict) and "shown" in extra:
        said = str(extra["shown"])
        return f"`{said}`" if " " not in said else said
    default = field.default
    if isinstance(default, Part):
        return "its defaults"
    form = next(_forms(_annotation(field)), None)
    if isinstance(default, (tuple, list)):
        return "`" + ", ".join(form.write(item) for item in default) + "`" if default and form else "`[]`"
    if isinstance(default, StrEnum):
        return f"`{default.value}`"
    return f"`{form.write(default)}`" if form else f"`{default}`"
