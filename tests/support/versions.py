# SPDX-License-Identifier: Apache-2.0
"""Other versions of this program: its sources, copied and changed, with XDP programs compiled from them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support.xdp import ROOT

Changes = Mapping[str, Mapping[str, str]]

# The same program to the eye, and another object.
OTHER_OBJECT: Changes = {"bpf/fairlead.bpf.c": {'SEC("xdp")\n': '\n\nSEC("xdp")\n'}}
# Entries of the flow table hold the same in another order, and something more.
OTHER_LAYOUT: Changes = {
    "bpf/abi.h": {
        "#define FL_XDP_ABI 3u": "#define FL_XDP_ABI 99u",
        "\t__u32 seen; /* when the last packet came */\n\t__u32 server;\n": "\t__u32 server;\n\t__u32 seen;\n",
        "\t__be32 near, far;\n": "\t__be32 far, near;\n\t__u64 more;\n",
        "\tstruct fl_addr near, far;\n": "\tstruct fl_addr far, near;\n",
    },
    "src/fairlead/dataplane/xdp/abi.py": {
        "\nABI = 3\n": "\nABI = 99\n",
        "u32 seen, u32 server,": "u32 server, u32 seen,",
        "    state: int\n    seen: int\n    server: int\n": "    state: int\n    server: int\n    seen: int\n",
        "v4 near, v4 far, port": "v4 far, v4 near, zero:8, port",
        "addr near, addr far, port": "addr far, addr near, port",
        "    born: int\n    near: bytes\n    far: bytes\n    near_port": (
            "    born: int\n    far: bytes\n    near: bytes\n    near_port"
        ),
    },
}


def version(directory: Path, changes: Changes) -> Path:
    """Make a version in ``directory``; the path from which Python imports it."""
    for part in ("src", "bpf"):
        shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, replacements in changes.items():
        text = (directory / name).read_text()
        for old, new in replacements.items():
            assert text.count(old) == 1, f"{name}: {old!r}"
            text = text.replace(old, new)
        (directory / name).write_text(text)
    subprocess.run([sys.executable, str(directory / "bpf/build.py")], check=True, capture_output=True)
    return directory / "src"
