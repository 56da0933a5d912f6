# SPDX-License-Identifier: Apache-2.0
"""The Python layouts are those of the C header, by the compiler's word."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fairlead.dataplane.proxy import abi

HEADER = Path(__file__).parents[3] / "worker" / "abi.h"


def _probe() -> str:
    lines = ["#include <stdio.h>", "#include <stddef.h>", '#include "abi.h"', "int main(void) {"]
    for layout in abi.LAYOUTS:
        lines.append(f'printf("{layout.name} %zu\\n", sizeof(struct {layout.name}));')
        for field in layout.fields:
            where = f"offsetof(struct {layout.name}, {field}), sizeof(((struct {layout.name} *)0)->{field})"
            lines.append(f'printf("{layout.name}.{field} %zu %zu\\n", {where});')
    lines += [f'printf("{kind.name} %d\\n", FL_{kind.name});' for kind in abi.Type]
    names = ("ABI_VERSION", "NAME_MAX", "KEY_MAX", "MAX_WORKERS", "MAX_SERVERS", "MAX_SERVICES", "MAX_TABLES")
    more = ("MAX_MEMBERS", "MAX_RANGES", "REASONS", "SOURCES", "SHM_MAGIC", "SERVER_RESET", "SERVICE_ACL")
    lines += [f'printf("{name} %u\\n", FL_{name});' for name in names + more]
    return "\n".join([*lines, "return 0; }"])


def _ours() -> list[str]:
    lines = []
    for layout in abi.LAYOUTS:
        lines.append(f"{layout.name} {layout.size}")
        lines += [f"{layout.name}.{field} {offset} {size}" for field, (offset, size) in layout.fields.items()]
    lines += [f"{kind.name} {kind.value}" for kind in abi.Type]
    names = ("ABI_VERSION", "NAME_MAX", "KEY_MAX", "MAX_WORKERS", "MAX_SERVERS", "MAX_SERVICES", "MAX_TABLES")
    more = ("MAX_MEMBERS", "MAX_RANGES", "REASONS", "SOURCES", "SHM_MAGIC", "SERVER_RESET", "SERVICE_ACL")
    return lines + [f"{name} {getattr(abi, name)}" for name in names + more]


def test_every_struct_field_and_number_is_where_the_compiler_puts_it(tmp_path: Path) -> None:
    source, program = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text(_probe())
    subprocess.run(["cc", f"-I{HEADER.parent}", "-o", str(program), str(source)], check=True)
    theirs = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(theirs) > 150
    assert _ours() == theirs
