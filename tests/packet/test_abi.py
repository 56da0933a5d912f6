# SPDX-License-Identifier: Apache-2.0
"""``abi.py`` says of every struct and number what the compiler makes of ``bpf/abi.h``."""

from __future__ import annotations

import subprocess
from enum import IntEnum
from ipaddress import ip_address
from pathlib import Path

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.flows import TABLES
from fairlead.dataplane.xdp.layout import Record
from support.xdp import ROOT

RECORDS = [
    record
    for record in abi.__dict__.values()
    if isinstance(record, type) and issubclass(record, Record) and record is not Record
]
ENUMS: list[type[IntEnum]] = [abi.Counter, abi.Kind, abi.Forwarding, abi.Choice, abi.Mode, abi.State]
NUMBERS = {
    "FL_XDP_ABI": abi.ABI,
    "FL_HOPS": abi.HOPS,
    "FL_NEAR_BITS": abi.NEAR_BITS,
    "FL_SNAT": abi.SNAT_MAX,
    "FL_SLOT_UNIT": abi.SLOT_UNIT,
    "FL_WINDOW_SHIFT": abi.WINDOW_SHIFT,
    "FL_PROBES": abi.PROBES,
    "FL_PLACES4": abi.PLACES4,
    "FL_REGION4_BITS": abi.REGION4_BITS,
    "FL_REGION6_BITS": abi.REGION6_BITS,
    "FL_NEIGHBOURS": abi.NEIGHBOURS,
    "FL_BLOCKS_PER_WORD": abi.BLOCKS_PER_WORD,
    "sizeof(struct fl_block4)": TABLES["flows4"].entries.block,
    "sizeof(struct fl_block6)": TABLES["flows6"].entries.block,
    "__builtin_offsetof(struct fl_block4, entry[1])": TABLES["flows4"].entries.offset(1),
    "__builtin_offsetof(struct fl_block4, details[1])": TABLES["flows4"].details.offset(1),
    "__builtin_offsetof(struct fl_block6, details)": TABLES["flows6"].details.offset(0),
    "FL_MARK_BITS": abi.MARK_BITS,
    "FL_SETTLED": abi.SETTLED,
    "FL_TRIES": abi.TRIES,
    "FL_CARRIED": abi.CARRIED,
    "FL_SERVER_RESET": abi.SERVER_RESET,
    "FL_SERVER_AMBIGUOUS": abi.SERVER_AMBIGUOUS,
    "FL_REPLY_AMBIGUOUS": abi.REPLY_AMBIGUOUS,
    "FL_REPLY_GUESS": abi.REPLY_GUESS,
    "FL_WAY_MARK": abi.WAY_MARK,
    "FL_WAY_MARKS": abi.WAY_MARKS,
    "FL_NEAR_VIP": abi.NEAR_VIP,
    "FL_NEAR_SERVER": abi.NEAR_SERVER,
    "FL_COUNTERS": len(abi.Counter),
    "sizeof(struct fl_cpu)": abi.CPU_BYTES,
    "sizeof(struct fl_settings)": abi.Settings.LAYOUT.size + 16 * abi.SNAT_MAX,
}


def c_path(record: type[Record], member: str) -> str:
    """The member as C names it: those of struct fl_flow, fl_usage and fl_server stand inside."""
    if record in (abi.Flow4, abi.Flow6):
        return member if member in ("src", "dst", "sport", "dport") else f"flow.{member}"
    if record in (abi.Details4, abi.Details6) and member in ("octets", "packets", "born"):
        return f"usage.{member}"
    if record is abi.WayRecord and member in ("addr", "server_family", "source", "spread"):
        return f"server.{member.removeprefix('server_')}"
    return member


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What a C program prints: every expression with its value."""
    expressions = [*NUMBERS]
    for enum in ENUMS:
        expressions += [f"FL_{member.name}" for member in enum]
    for record in RECORDS:
        name = record.LAYOUT.c_name
        expressions.append(f"sizeof(struct {name})")
        expressions += [f"__builtin_offsetof(struct {name}, {c_path(record, m)})" for m, _ in record.LAYOUT.members]
    lines = "\n".join(f'printf("%s=%zu\\n", "{e}", (unsigned long)({e}));' for e in expressions)
    directory: Path = tmp_path_factory.mktemp("abi")
    source = directory / "abi.c"
    source.write_text(f'#include <stdio.h>\n#include "{ROOT}/bpf/abi.h"\nint main(void) {{ {lines} }}\n')
    subprocess.run(["cc", "-w", "-o", directory / "abi", source], check=True)
    printed = subprocess.run([directory / "abi"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, _, value in (line.rpartition("=") for line in printed.splitlines())}


def test_numbers(compiled: dict[str, int]) -> None:
    assert {name: compiled[name] for name in NUMBERS} == NUMBERS


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.__name__)
def test_enums(compiled: dict[str, int], enum: type[IntEnum]) -> None:
    assert {member.name: compiled[f"FL_{member.name}"] for member in enum} == {m.name: m.value for m in enum}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_layouts(compiled: dict[str, int], record: type[Record]) -> None:
    name = record.LAYOUT.c_name
    offsets = {m: compiled[f"__builtin_offsetof(struct {name}, {c_path(record, m)})"] for m, _ in record.LAYOUT.members}
    assert offsets == dict(record.LAYOUT.members)
    if record is not abi.Settings:  # its addresses are added by with_snat
        assert compiled[f"sizeof(struct {name})"] == record.LAYOUT.size


def test_every_struct_is_covered() -> None:
    assert len(RECORDS) == 18


@pytest.mark.parametrize("text", ["192.0.2.1", "0.0.0.0", "255.255.255.255", "2001:db8::1", "::1"])
def test_addresses_survive(text: str) -> None:
    assert abi.unpacked(abi.packed(ip_address(text))) == ip_address(text)


def test_a_table_block_is_whole_units() -> None:
    """Seven slots fill two units; three members begin in the third and fill two more."""
    block = abi.table_block([11, 12, 13], bytes(range(14)))
    assert block == bytes(range(14)) + bytes(2) + b"".join(n.to_bytes(4, "little") for n in (11, 12, 13, 0))


def test_records_survive() -> None:
    key = abi.ListenKey4(bytes([192, 0, 2, 1]), 8080, 6)
    assert key.pack() == bytes([192, 0, 2, 1, 0x1F, 0x90, 6, 0])
    assert abi.ListenKey4.unpack(key.pack()) == key
