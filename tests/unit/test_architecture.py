# SPDX-License-Identifier: Apache-2.0
"""The rules of ARCHITECTURE.md that a machine can check: who imports whom, and what pure rooms never touch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "fairlead"
MODULES = sorted(PACKAGE.rglob("*.py"))

BASE = {"model", "errors"}
DECIDING = BASE | {"policy", "protocols", "config"}
ACTING = {"dataplane", "announce", "probes"}
MAY_IMPORT = {
    "": set[str](),
    "errors": set[str](),
    "model": {"errors"},
    "config": BASE,
    "protocols": BASE,
    "policy": BASE,
    "dataplane": DECIDING,
    "announce": DECIDING,
    "probes": DECIDING,
    "engine": DECIDING | ACTING,
    "api": BASE | {"engine"},  # never past the facade
    "demo": BASE,
    "cli": BASE,
    "app": DECIDING | ACTING | {"engine", "api", "cli", "demo"},
}
PURE = {"config", "policy", "protocols", "model", "errors"}
IMPURE_MODULES = {
    "asyncio", "ctypes", "logging", "multiprocessing", "os", "random", "secrets", "select", "selectors", "signal",
    "socket", "structlog", "subprocess", "threading", "time",
}  # fmt: skip
FORBIDDEN_WORDS = ("backend", "upstream", "vserver", "frontend", "master")


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return {"__init__": "", "__main__": "app"}.get(first, first)


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports anywhere, also inside functions; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def test_there_are_modules_to_judge() -> None:
    assert len(MODULES) >= 15


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    room = _room(path)
    assert room in MAY_IMPORT, f"room {room} is not in the map; add it here and in ARCHITECTURE.md"
    for name, line in _imports(ast.parse(path.read_text())):
        if name.split(".")[0] != "fairlead" or name == "fairlead.__version__":
            continue
        other = name.split(".")[1]
        assert other == room or other in MAY_IMPORT[room], f"{path}:{line}: {room} must not import {name}"


@pytest.mark.parametrize("path", [path for path in MODULES if _room(path) in PURE], ids=_name)
def test_pure_rooms_know_neither_clock_nor_chance_nor_io(path: Path) -> None:
    for name, line in _imports(ast.parse(path.read_text())):
        assert name.split(".")[0] not in IMPURE_MODULES, f"{path}:{line}: a pure room must not import {name}"


def test_ctypes_stands_in_few_files() -> None:
    """One package that calls libbpf; one file that calls our own library; one that locks memory and gives rights up,
    in a process without the others.
    """
    users = {
        _name(p) for p in MODULES if any(n.split(".")[0] == "ctypes" for n, _ in _imports(ast.parse(p.read_text())))
    }
    assert {name for name in users if not name.startswith("dataplane/xdp/libbpf/")} <= {
        "dataplane/native.py",
        "announce/vrrp/host.py",
    }
    assert len(users) > 1, "they are found"


def test_netlink_stands_in_few_files() -> None:
    """Links and addresses, routing rules, drivers, and routes; these know nothing of each other."""
    users = {_name(p) for p in MODULES if "AF_NETLINK" in p.read_text()}
    assert users <= {
        "announce/netlink.py",
        "dataplane/proxy/transparent.py",
        "dataplane/xdp/devices.py",
        "dataplane/xdp/host.py",
    }


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_nothing_happens_at_import(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try), f"{path}:{node.lineno}: runs at import"
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{path}:{node.lineno}: runs at import"
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            called = {ast.unparse(call.func) for call in ast.walk(node.value) if isinstance(call, ast.Call)}
            for call in called:
                assert call.split(".")[0] not in {"os", "open", "socket", "subprocess", "time"}, f"{path}:{node.lineno}"
                assert not call.endswith(("read_text", "read_bytes", "exists")), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_one_word_for_one_thing(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                name = node.name
            case ast.arg():
                name = node.arg
            case ast.Name(ctx=ast.Store()):
                name = node.id
            case _:
                continue
        assert not any(word in name.lower() for word in FORBIDDEN_WORDS), f"{path}: {name} (ARCHITECTURE.md, words)"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
