# SPDX-License-Identifier: Apache-2.0
"""Compiles the proxy worker, the agent's library and the XDP programs while the wheel is built.

``pip install .`` works on a bare machine: its C compiler is used when it has one, the ``ziglang`` wheel otherwise.
Without libbpf's headers the XDP programs are left out, and services that need them are refused with a sentence that
says so.
``python hatch_build.py`` compiles in place, without building a wheel.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
WORKER = Path("src/fairlead/_native/fairlead-worker")
LIBRARY = WORKER.with_name("maglev.so")
ZIG = "ziglang>=0.13"
WITHOUT_XDP = (
    "fairlead: the XDP programs could not be compiled, so only forwarding: proxy will work here; "
    "Debian: apt-get install clang libbpf-dev"
)
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wpointer-arith")
HARDENING = ("-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong")
LINKING = ("-Wl,-z,relro", "-Wl,-z,now")


class BuildError(Exception):
    """The worker cannot be built; the message is one line that says what to do."""


def system_compiler() -> list[str] | None:
    """The compiler named by CC, else the first of cc, gcc and clang that is installed."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    return None


def compiler() -> list[str]:
    """The compiler to use.

    Raises:
        BuildError: There is none.
    """
    if found := system_compiler():
        return found
    probe = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False)
    if probe.returncode == 0:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise BuildError("no C compiler found: install gcc or clang (Debian: apt-get install gcc libc6-dev), or set CC")


def version() -> str:
    """``__version__`` of the package, read without importing it."""
    tree = ast.parse((ROOT / "src/fairlead/__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise BuildError("src/fairlead/__init__.py has no __version__")


def build_worker() -> Path:
    """Compile ``worker/*.c``.

    Raises:
        BuildError: There are no sources, there is no compiler, or it refused them.
    """
    sources = sorted((ROOT / "worker").glob("*.c"))
    if not sources:
        raise BuildError("the sources of the worker (worker/*.c) are missing: build from a whole checkout or sdist")
    return _compile("the worker", sources, ROOT / WORKER, ["-fPIE", f'-DFAIRLEAD_VERSION="{version()}"'], ["-pie"])


def build_library() -> Path:
    """Compile ``native/*.c``, which the agent calls.

    Raises:
        BuildError: As for the worker.
    """
    sources = sorted((ROOT / "native").glob("*.c"))
    if not sources:
        raise BuildError("the sources of the agent's library (native/*.c) are missing: build from a whole checkout")
    return _compile("the agent's library", sources, ROOT / LIBRARY, ["-fPIC"], ["-shared"])


def _compile(what: str, sources: Sequence[Path], target: Path, options: Sequence[str], linking: Sequence[str]) -> Path:
    """Make ``target``; the old one is replaced as a whole, for it may be running."""
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    extra = shlex.split(os.environ.get("CFLAGS", ""))
    command = [*compiler(), "-std=gnu11", "-O2", "-g", *WARNINGS, *HARDENING, *options]
    command += [*extra, "-o", str(temporary), *map(str, sources), *linking, *LINKING]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        sys.stderr.write(done.stderr)
        if done.returncode != 0:
            raise BuildError(f"{command[0]} could not compile {what} (its messages stand above)")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def build_programs() -> list[Path]:
    """Compile ``bpf/*.bpf.c``; nothing where the machine cannot, and why stands on standard error."""
    spec = importlib.util.spec_from_file_location("bpf_build", ROOT / "bpf/build.py")
    if spec is None or spec.loader is None or not (ROOT / "bpf/build.py").exists():
        return []
    programs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(programs)
    made = []
    for source in sorted((ROOT / "bpf").glob("*.bpf.c")):
        try:
            made.append(programs.compile_program(source, (ROOT / WORKER).parent))
        except programs.BuildError as error:
            sys.stderr.write(f"{error}\n{WITHOUT_XDP}\n")
            return []
    return made


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc,unused-ignore]
    """Puts what was compiled into wheels and editable installs; a source distribution carries its sources."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Ask for a compiler from the package index only where the machine has none (it is 400 MB unpacked)."""
        return [ZIG] if self.target_name == "wheel" and system_compiler() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, and mark the wheel as one for this platform but for any Python 3."""
        if self.target_name != "wheel":
            return
        try:
            made = [build_worker(), build_library()]
        except BuildError as error:
            raise SystemExit(f"fairlead: {error}") from None
        build_data["artifacts"] += [str(path.relative_to(ROOT)) for path in (*made, *build_programs())]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__":
    try:
        build_worker()
        build_library()
    except BuildError as failure:
        raise SystemExit(f"fairlead: {failure}") from None
    build_programs()
