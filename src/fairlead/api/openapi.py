# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 document, made from the route table and the dataclasses; nothing is written down twice."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from fairlead import __version__
from fairlead.api.codec import Parameter, adapter
from fairlead.api.events import EVENT_STREAM
from fairlead.api.problems import MEDIA_TYPE, ProblemBody
from fairlead.api.routes import OPENAPI_PATH, OPERATIONS, Operation

_REFERENCE = "#/components/schemas/{model}"
_JSON_TYPES = {str: "string", int: "integer", bool: "boolean"}


def document() -> dict[str, Any]:
    """The whole document."""
    schemas, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schemas)
    paths[OPENAPI_PATH] = {
        "get": {
            "operationId": "openapi",
            "summary": "This document",
            "responses": {
                "200": {"description": "OK", "content": {"application/json": {"schema": {"type": "object"}}}}
            },
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fairlead",
            "version": __version__,
            "description": "Served on a unix socket. The peer's user decides: root and the daemon's own user operate, "
            "others who may open the socket read.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """The schema of every type in the route table, and the components that those refer to."""
    kinds: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = [(ProblemBody, "serialization", adapter(ProblemBody))]
    for operation in OPERATIONS:
        if not isinstance(operation.answer, str):
            kinds.append((operation.answer, "serialization", adapter(operation.answer)))
        if operation.body is not None:
            kinds.append((operation.body, "validation", adapter(operation.body)))
    found, definitions = TypeAdapter.json_schemas(kinds, ref_template=_REFERENCE)
    return {kind: schema for (kind, _), schema in found.items()}, definitions["$defs"]


def _operation(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": {"200": _answer(operation, schemas), "default": _problem(schemas)},
    }
    if operation.body is not None:
        content = {"application/json": {"schema": schemas[operation.body]}}
        described["requestBody"] = {"required": True, "content": content}
    if operation.writes:
        described["responses"]["403"] = _problem(schemas, "The peer may only read")
        described["responses"]["412"] = _problem(schemas, "If-Match names other settings than the present ones")
    return described


def _answer(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        content: dict[str, Any] = {operation.answer: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": schemas[operation.answer]}}
    answer: dict[str, Any] = {"description": HTTPStatus.OK.phrase, "content": content}
    if operation.subject is not None and not operation.writes:
        text = "Names the settings, not the counters; give it back in If-Match"
        answer["headers"] = {"ETag": {"description": text, "schema": {"type": "string"}}}
    return answer


def _problem(schemas: dict[Any, Any], description: str = "Refused (RFC 9457)") -> dict[str, Any]:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schemas[ProblemBody]}}}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    listed = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)", operation.path)
    ]
    listed += [
        {"name": p.name, "in": "query", "description": p.description, "schema": _parameter_schema(p)}
        for p in operation.parameters
    ]
    if operation.writes:
        text = "Go on only while the settings carry one of these entity tags"
        listed.append({"name": "If-Match", "in": "header", "description": text, "schema": {"type": "string"}})
    if operation.answer == EVENT_STREAM:
        text = "Id of the last event seen"
        listed.append({"name": "Last-Event-ID", "in": "header", "description": text, "schema": {"type": "integer"}})
    return listed


def _parameter_schema(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _JSON_TYPES[parameter.kind]}
    if parameter.kind is int:
        schema |= {"minimum": parameter.low, "maximum": parameter.high}
    if parameter.default is not None:
        schema["default"] = parameter.default
    return schema
