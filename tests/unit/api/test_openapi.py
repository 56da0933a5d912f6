# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document: sound, complete, and true of what the API does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from fairlead.api.openapi import document
from fairlead.api.routes import OPENAPI_PATH, OPERATIONS
from support.api import Serving


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document()


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def filled(path: str) -> str:
    """A path with something in place of its parameters."""
    names = {"name": "web", "key": "web/web-1", "address": "192.0.2.10", "protocol": "tcp"}
    ends = {"client": "192.0.2.1:4000", "vip": "192.0.2.10:80"}
    for name, value in {**names, **ends}.items():
        path = path.replace(f"{{{name}}}", value)
    return path


def test_every_route_is_described_and_nothing_else(described: dict[str, Any]) -> None:
    wanted = {(operation.path.replace(":path}", "}"), operation.method.lower()) for operation in OPERATIONS}
    wanted.add((OPENAPI_PATH, "get"))
    assert {(path, method) for path, method, _ in operations(described)} == wanted
    assert len(wanted) == 20


def test_the_document_is_sound(described: dict[str, Any]) -> None:
    """The rules of OpenAPI 3.1.0 that a document can break: section 4.8."""
    assert described["openapi"] == "3.1.0"
    assert {"title", "version"} <= described["info"].keys()
    components = described["components"]["schemas"]
    for node in nodes(described):
        if "$ref" in node:
            assert node["$ref"].removeprefix("#/components/schemas/") in components
        assert "$defs" not in node
    names = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(names) == len(set(names))
    for path, method, operation in operations(described):
        in_path = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        assert all(p["required"] for p in operation.get("parameters", []) if p["in"] == "path")
        assert operation["responses"]["200"]["description"]
        assert ("requestBody" in operation) == (method == "patch")


def test_fields_and_values_come_from_the_dataclasses(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    assert {"active", "down_reason", "drain_deadline_at"} <= schemas["ServerView"]["properties"].keys()
    assert schemas["ServerChange"]["additionalProperties"] is False
    assert schemas["AdminState"]["enum"] == ["ready", "drain", "maint"]
    assert "enum" in schemas["Reason"]
    weight = schemas["ServerChange"]["properties"]["weight"]["anyOf"][0]
    assert (weight["minimum"], weight["maximum"]) == (0, 65535)


def matches(schema: dict[str, Any], value: Any, schemas: dict[str, Any]) -> bool:
    """Whether ``value`` fits, for the keywords that these schemas use."""
    if "$ref" in schema:
        return matches(schemas[schema["$ref"].rpartition("/")[2]], value, schemas)
    if "anyOf" in schema:
        return any(matches(one, value, schemas) for one in schema["anyOf"])
    match schema.get("type"):
        case "object" if "properties" in schema:
            return (
                isinstance(value, dict)
                and set(schema.get("required", [])) <= value.keys() <= schema["properties"].keys()
                and all(matches(schema["properties"][key], inner, schemas) for key, inner in value.items())
            )
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list) and all(matches(schema["items"], inner, schemas) for inner in value)
        case "string":
            return isinstance(value, str) and value in schema.get("enum", [value])
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
    raise AssertionError(f"unknown schema {schema}")


def test_answers_fit_their_schemas(daemon: Serving) -> None:
    _, described, _ = daemon.ask("GET", OPENAPI_PATH)
    schemas = described["components"]["schemas"]
    judged = 0
    for path, method, operation in operations(described):
        content = operation["responses"]["200"]["content"]
        if "application/json" not in content:
            continue
        target = filled(path)
        body = {"weight": 3} if "requestBody" in operation else None
        status, answer, _ = daemon.ask(method.upper(), target, body)
        assert status == 200
        assert matches(content["application/json"]["schema"], answer, schemas), target
        judged += 1
    assert judged == 16
    refused = daemon.ask("GET", "/v1/servers/web/none")[1]
    assert matches(schemas["ProblemBody"], refused, schemas)
    assert not matches(schemas["ServerView"], refused, schemas)


def test_parameters_are_those_that_are_taken(daemon: Serving, described: dict[str, Any]) -> None:
    for path, method, operation in operations(described):
        for parameter in operation.get("parameters", []):
            if parameter["in"] != "query" or path == "/events":
                continue
            target = filled(path)
            value = {"integer": "1", "boolean": "true", "string": "web"}[parameter["schema"]["type"]]
            value = "0" if parameter["name"] == "cursor" else value
            body = {"weight": 3} if method == "patch" else None
            assert daemon.ask(method.upper(), f"{target}?{parameter['name']}={value}", body)[0] == 200
