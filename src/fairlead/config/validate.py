# SPDX-License-Identifier: Apache-2.0
"""The tree through the schema. Invariant: pydantic's findings come out in our words, at their place in the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fairlead.config.findings import Findings, Refused
from fairlead.config.forms import names, parse_name, parse_vip
from fairlead.config.schema.base import Builds, Part
from fairlead.config.schema.document import NAMED, Draft
from fairlead.config.schema.health import MONITORS, TAG, Unknown
from fairlead.config.schema.node import Settings
from fairlead.config.tree import Loc, Tree


def validate(tree: Tree, found: Findings) -> Draft:
    """Return what is valid; findings hold what is not."""
    draft = Draft()
    for section, model in NAMED.items():
        valid: dict[str, Any] = getattr(draft, section)
        for name, entry in tree.named[section].items():
            _check_name(tree, section, name, found)
            try:
                valid[name] = model.model_validate(entry.value)
            except ValidationError as error:
                _report(error, model, (section, name), tree, found)
    try:
        draft.settings = Settings.model_validate(tree.plain_settings())
    except ValidationError as error:
        _report(error, Settings, (), tree, found)
    return draft


def _check_name(tree: Tree, section: str, name: str, found: Findings) -> None:
    try:
        if section == "vips":
            parse_vip(name)
        else:
            parse_name(name)
    except Refused as error:
        place, _ = tree.locate((section, name), key=True)
        found.error(place, section, str(error))


def _report(error: ValidationError, model: type[Part], prefix: Loc, tree: Tree, found: Findings) -> None:
    for detail in error.errors(include_url=False, include_input=False):
        unknown = detail["type"] == "extra_forbidden"
        place, path = tree.locate((*prefix, *detail["loc"]), key=unknown)
        found.error(place, path, _message(detail, model, found))


def _message(detail: ErrorDetails, model: type[Part], found: Findings) -> str:
    """Say in our words what pydantic found."""
    loc = detail["loc"]
    match detail["type"]:
        case "value_error":
            return str(detail["ctx"]["error"])
        case "missing":
            return "is required"
        case "extra_forbidden":
            keys = list(_model_at(model, loc[:-1]).model_fields)
            hint = found.suggestion(str(loc[-1]), keys) or f"; allowed are: {names(keys)}"
            return f"unknown key{hint}"
        case "model_type" | "model_attributes_type":
            return f"must be a mapping with keys of: {names(_model_at(model, loc).model_fields)}"
        case "dict_type":
            return "must be a mapping"
        case "list_type":
            return "must be a list"
        case _:
            return f"is not valid: {detail['msg']}"


def _model_at(model: type[Part], loc: Loc) -> type[Part]:
    """The model that describes the mapping at ``loc`` below ``model``."""
    for element in loc:
        if isinstance(element, int):
            continue
        if element.startswith(TAG):
            model = MONITORS.get(element[len(TAG) :], Unknown)
        elif element in model.model_fields:
            model = next(parts(model.model_fields[element].annotation), model)
    return model


def parts(annotation: Any) -> Iterator[type[Part]]:
    """The models that an annotation mentions, in order."""
    if isinstance(annotation, Builds):
        yield annotation.part
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for argument in annotation if isinstance(annotation, tuple) else get_args(annotation):
        yield from parts(argument)
