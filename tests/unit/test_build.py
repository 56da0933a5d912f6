# SPDX-License-Identifier: Apache-2.0
"""The build hook compiles the worker, and says in one line what is missing when it cannot."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The hook, on a small tree of its own."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "worker").mkdir()
    (tmp_path / "src/fairlead").mkdir(parents=True)
    (tmp_path / "src/fairlead/__init__.py").write_text('__version__ = "9.8.7"\n')
    monkeypatch.delenv("CC", raising=False)
    return module


def write_program(root: Path, text: str) -> None:
    (root / "worker/main.c").write_text(f"#include <stdio.h>\nint main(void)\n{{\n\t{text}\n}}\n")


def test_the_program_knows_its_version(hook: ModuleType, tmp_path: Path) -> None:
    write_program(tmp_path, "puts(FAIRLEAD_VERSION); return 0;")
    program = hook.build_worker()
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "9.8.7\n"


def test_the_agents_library_is_compiled_beside_it(hook: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(hook.BuildError, match=r"sources of the agent's library .* are missing"):
        hook.build_library()
    (tmp_path / "native").mkdir()
    (tmp_path / "native/sum.c").write_text("int sum(int, int);\nint sum(int a, int b)\n{\n\treturn a + b;\n}\n")
    assert ctypes.CDLL(str(hook.build_library())).sum(2, 3) == 5


def test_a_running_program_is_replaced_without_harm(hook: ModuleType, tmp_path: Path) -> None:
    write_program(tmp_path, 'puts("old"); fflush(stdout); getchar(); return 0;')
    program = hook.build_worker()
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "old\n"
        write_program(tmp_path, 'puts("new"); return 0;')
        assert hook.build_worker() == program
        assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "new\n"
        assert running.communicate("\n", timeout=5)[0] == ""
    assert list(program.parent.iterdir()) == [program]


def test_sources_that_do_not_compile_leave_the_old_program(hook: ModuleType, tmp_path: Path) -> None:
    write_program(tmp_path, "return 0;")
    program = hook.build_worker()
    before = program.read_bytes()
    write_program(tmp_path, "return nonsense;")
    with pytest.raises(hook.BuildError, match="could not compile the worker"):
        hook.build_worker()
    assert program.read_bytes() == before
    assert list(program.parent.iterdir()) == [program]


def test_without_a_compiler_the_index_is_asked_for_one(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = hook.NativeBuildHook.dependencies
    assert ask(SimpleNamespace(target_name="wheel")) == []
    monkeypatch.setenv("PATH", "/nonexistent")
    assert ask(SimpleNamespace(target_name="wheel")) == [hook.ZIG]
    assert ask(SimpleNamespace(target_name="sdist")) == []


def test_missing_sources_are_told(hook: ModuleType) -> None:
    with pytest.raises(hook.BuildError, match=r"sources of the worker .* are missing"):
        hook.build_worker()


def test_no_compiler_at_all_is_one_clear_line(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(tmp_path, "return 0;")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(hook.BuildError, match="no C compiler found: install gcc or clang"):
        hook.build_worker()
