# SPDX-License-Identifier: Apache-2.0
"""Rules of every tracked file: licence line, words that never appear, links that resolve."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fairlead.dataplane.xdp.abi import Counter
from fairlead.model.reasons import DownReason, HostCheck, IdleReason, RejectReason, ShareReason
from fairlead.protocols.vrrp.machine import Why
from fairlead.protocols.vrrp.packet import InvalidReason

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (".py", ".c", ".h")
# Built from pieces, so that this file does not contain what it looks for.
NEVER = {
    "a path of one machine": "/wo" + "rk/|/fa" + r"rm/|\.lib" + "rary/|/home/[a-z]",
    "a tool of one workplace": "fa" + "rm-(bench|studio)|land" + r"\.lock|\b(Clau" + "de|Anth" + r"ropic)\b",
    "the way it was made": r"\bA" + r"I\b|\b[Ii]ssue " + r"#?\d|this se" + "ssion|the coordi" + "nator",
    "work that is not done": r"\bTO" + r"DO\b|\bFIX" + "ME|\bXX" + r"X\b",
}


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name.decode() for name in listing.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file() and "LICENSE" not in str(path.relative_to(ROOT))]


def documents() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def test_there_are_files_to_judge() -> None:
    assert len(tracked()) >= 30


def test_every_source_names_its_licence() -> None:
    for path in tracked():
        if path.suffix in SOURCES:
            in_kernel = path.suffix != ".py" and (path.parent.name == "bpf" or path.name.endswith(".bpf.c"))
            licence = "GPL-2.0-only" if in_kernel else "Apache-2.0"
            assert f"SPDX-License-Identifier: {licence}" in path.read_text().partition("\n")[0], path


@pytest.mark.parametrize("what", NEVER)
def test_words_that_never_stand_in_a_file(what: str) -> None:
    pattern = re.compile(NEVER[what])
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found = pattern.search(text)
        assert not found, f"{path}: {what}: {found.group() if found else ''}"


def _anchors(path: Path) -> set[str]:
    """The anchors that a reader of Markdown makes from headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_in_documents_resolve() -> None:
    for path in documents():
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            linked = (path.parent / name).resolve() if name else path
            assert linked.exists(), f"{path}: {target}"
            if anchor:
                assert anchor in _anchors(linked), f"{path}: {target}"


def test_every_reason_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs/reference/reasons.md").read_text(), re.MULTILINE))
    known = (
        set(InvalidReason)
        | set(Why)
        | {reason.name.lower() for reason in RejectReason}
        | set(DownReason)
        | set(IdleReason)
        | set(ShareReason)
        | set(HostCheck)
        | {fate.name.lower() for fate in Counter}
    )
    assert documented == known
