# SPDX-License-Identifier: Apache-2.0
"""Compiles the XDP programs: ``python bpf/build.py [--output DIRECTORY] [SOURCE ...]``.

clang is used when it is there (``CLANG`` names another), the ``ziglang`` wheel otherwise; both are tested.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "src/fairlead/_native"
# v3: 32-bit jumps and atomic operations that return the old value (Linux 5.12).
COMMON = ("-O2", "-g", "-mcpu=v3", "-Wall", "-Wextra")


class BuildError(Exception):
    """A program cannot be compiled; the message says what to do."""


def compiler() -> list[str]:
    """The command that compiles for BPF.

    Raises:
        BuildError: Neither clang nor ziglang is there.
    """
    named = shlex.split(os.environ.get("CLANG", "clang"))
    if shutil.which(named[0]):
        return [*named, "-target", "bpf"]
    zig = [sys.executable, "-m", "ziglang"]
    if subprocess.run([*zig, "version"], capture_output=True, check=False).returncode == 0:
        return zig_compiler(zig)
    raise BuildError("no compiler for XDP programs: install clang (apt-get install clang) or pip install ziglang")


def zig_compiler(zig: Sequence[str]) -> list[str]:
    """The command that compiles for BPF with the ziglang wheel."""
    return [*zig, "cc", "-target", "bpfel-freestanding-none", "-fno-sanitize=all", "-fno-stack-protector"]


def include_directories() -> list[str]:
    """Where the kernel's and libbpf's headers are: ``asm/`` stands in a directory of the machine's architecture."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    places = [HERE, Path("/usr/include") / multiarch, Path("/usr/include")]
    return [part for place in places if place.is_dir() for part in ("-idirafter", str(place))]


def compile_program(source: Path, output: Path, command: Sequence[str] | None = None) -> Path:
    """Compile ``source`` to ``output``/NAME.bpf.o, replacing the old object as a whole.

    Raises:
        BuildError: There is no compiler, or it refused the source.
    """
    output.mkdir(parents=True, exist_ok=True)
    target = output / source.name.replace(".c", ".o")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    full = [*(command or compiler()), *COMMON, *include_directories(), "-c", str(source), "-o", str(temporary)]
    done = subprocess.run(full, capture_output=True, text=True, check=False)
    if done.returncode:
        temporary.unlink(missing_ok=True)
        raise BuildError(f"{shlex.join(full)}\n{done.stderr}")
    temporary.replace(target)
    return target


def main() -> int:
    """Compile what is named, or every program here."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, default=OUTPUT)
    arguments.add_argument("sources", nargs="*", type=Path)
    chosen = arguments.parse_args()
    try:
        for source in chosen.sources or sorted(HERE.glob("*.bpf.c")):
            print(compile_program(source, chosen.output))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
