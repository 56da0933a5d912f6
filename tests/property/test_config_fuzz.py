# SPDX-License-Identifier: Apache-2.0
"""Whatever the bytes are, the answer is a Configuration or a ConfigError whose places lie in the file, soon."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.config import Source, from_options, load
from fairlead.config.schema.document import NAMED, SECTIONS
from fairlead.config.schema.health import MONITORS
from fairlead.errors import ConfigError, Problem
from fairlead.model.configuration import Configuration
from support.yardstick import slowness

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
TEXTS = [path.read_bytes() for path in EXAMPLES]
ENVIRONMENT = {"A": "192.0.2.1", "B": "", "C": "}\n- x: {"}
# Every line break that YAML 1.1 knows.
BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
ordinary = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def place_lies_in(problem: Problem, text: str) -> bool:
    lines = BREAK.split(text)
    return 1 <= problem.line <= len(lines) and 1 <= problem.column <= len(lines[problem.line - 1]) + 1


def outcome(*data: bytes) -> Configuration | None:
    """Load, and judge the answer."""
    started = time.process_time()
    answer: Configuration | None = None
    try:
        result = load([Source(f"f{n}", part) for n, part in enumerate(data)], ENVIRONMENT)
        answer, found = result.configuration, result.warnings
    except ConfigError as error:
        found = error.problems
    took_s = time.process_time() - started
    assert took_s < 5 or took_s < 5 * slowness()  # asked of the machine only when it seems slow
    assert found or answer is not None
    for problem in found:
        text = data[int(problem.file[1:])].decode(errors="replace").removeprefix("\ufeff")
        assert place_lies_in(problem, text), problem
        assert problem.message
        assert str(problem).isprintable(), problem
    return answer


@ordinary
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    outcome(data)


@ordinary
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"%@`#,?<~$ \n\t\r\x85\u2028é0.1\\"), max_size=80))
def test_any_text_of_the_characters_that_mean_something(text: str) -> None:
    outcome(text.encode())


@ordinary
@given(st.data())
def test_mutated_examples(data: st.DataObject) -> None:
    text = bytearray(data.draw(st.sampled_from(TEXTS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        end = at + data.draw(st.integers(0, 8))
        match data.draw(st.integers(0, 3)):
            case 0:
                text[at:end] = data.draw(st.binary(max_size=6))
            case 1:
                text[at:end] = data.draw(st.sampled_from(WORDS)).encode()
            case 2:
                del text[at:end]
            case 3:
                text[at:at] = text[at : at + 40]
        if not text:
            return
    outcome(bytes(text))


KEYS = sorted(
    {
        *SECTIONS,
        *(key for model in [*NAMED.values(), *MONITORS.values()] for key in model.model_fields),
        *("timeout", "prefix_v4", "accept", "send", "connections", "address", "name", "weight", "state", "backup"),
        *("verify", "server_name", "workers", "socket", "<<", "web", "p", "192.0.2.1/24"),
    }
)
PLAIN = """
tcp udp http https tls proxy nat dsr auto off none static true false null web p 5m 0s 250ms 1 0 -1 256 1e3 0x1 50%
200-399 / /healthz * &a *a 192.0.2.1:80 192.0.2.1 [::1]:80 [2001:db8::1] 192.0.2.0/24 eth0 192.0.2.1:80-90 ::1:80
192.0.2.1:* ${A}:80 ${B} ${C} ${D} ${D:-1} $$ ${ {} {message} %s \u00e9
"""
WORDS = [*PLAIN.split(), "\x00", "\u2028", "a\nb"]
scalars = st.sampled_from(WORDS) | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
keys = st.sampled_from(KEYS) | st.text(max_size=10)
structures = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=30,
)


@ordinary
@given(st.dictionaries(st.sampled_from(SECTIONS) | keys, structures, max_size=5), st.booleans())
def test_any_structure(structure: dict[str, object], flow: bool) -> None:
    outcome(yaml.safe_dump(structure, default_flow_style=flow, allow_unicode=True).encode(errors="surrogateescape"))


servers = st.lists(
    st.sampled_from(["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3", "[2001:db8::1]:80"])
    | st.fixed_dictionaries(
        {"address": st.sampled_from(["192.0.2.1:80", "192.0.2.4:80", "192.0.2.5:81"])},
        optional={
            "weight": st.sampled_from(["0", "1", "256", "257"]),
            "name": st.sampled_from(["a", "b", "A"]),
            "backup": st.sampled_from(["true", "false"]),
            "state": st.sampled_from(["ready", "drain", "maint"]),
        },
    ),
    max_size=4,
)
services = st.fixed_dictionaries(
    {
        "listen": st.sampled_from(["192.0.2.9:80", "192.0.2.9:1-90", "192.0.2.1:80", "[::]:80"]),
        "pool": st.sampled_from("pq"),
    },
    optional={
        "scheduler": st.sampled_from(["maglev", "rr", "lc"]),
        "persistence": st.sampled_from(["off", "5m", {"timeout": "1s", "prefix_v4": "24"}]),
        "retries": st.sampled_from(["0", "3"]),
        "allow": st.lists(st.sampled_from(["192.0.2.0/24", "192.0.2.1/8"]), max_size=2),
        "forwarding": st.sampled_from(["proxy", "nat", "dsr"]),
    },
)
pools = st.fixed_dictionaries(
    {"servers": servers},
    optional={
        "health": st.sampled_from(
            ["none", "tcp", {"type": "http"}, ["tcp", {"type": "https", "timeout": "9s"}], "dns"]
        ),
        "quorum": st.sampled_from(["1", "9"]),
    },
)


@ordinary
@given(
    st.dictionaries(st.sampled_from("abc"), services, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from("pqr"), pools, min_size=1, max_size=3),
)
def test_nearly_valid_structures(some: dict[str, object], more: dict[str, object]) -> None:
    whole = json.dumps({"services": some, "pools": more}).encode()
    answer = outcome(whole)
    split = outcome(json.dumps({"services": some}).encode(), json.dumps({"pools": more}).encode())
    assert (answer is None) == (split is None)
    if answer is not None and split is not None:
        assert (answer.services, answer.pools) == (split.services, split.pools)
        assert outcome(whole) == answer


@ordinary
@given(st.lists(scalars.map(str), max_size=3), st.lists(scalars.map(str), max_size=3), st.sampled_from([None, *WORDS]))
def test_any_options(listen: list[str], server: list[str], word: str | None) -> None:
    found: tuple[Problem, ...] = ()
    try:
        read = from_options(listen, server, scheduler=word, health=word, workers=word)
        assert len(read.services["main"].listen) == len(listen)
    except ConfigError as error:
        found = error.problems
    assert all(problem.file == "<command line>" and problem.line == 0 for problem in found)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_cut_anywhere(path: Path) -> None:
    text = path.read_bytes()
    for end in range(0, len(text), 7):
        outcome(text[:end])
