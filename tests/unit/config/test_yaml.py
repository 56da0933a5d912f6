# SPDX-License-Identifier: Apache-2.0
"""The file as text: YAML's syntax, its traps and bombs, encodings, the environment."""

from __future__ import annotations

import time

import pytest
import yaml

from support.configs import POOL, SERVICE, assert_problem, configuration, loaded, marked, problems
from support.yardstick import slowness

TAIL = POOL + SERVICE

SYNTAX = [
    ("services: {§", "the file ends too early"),
    ("services: §'x\n\n", "the file ends too early"),
    ("services: {a: $§{X}}", "quote ${NAME} inside"),
    ("services:\n§\tweb: {}\n", "not with tabs"),
    ("services:\n  web: listen§: 1\n", "quote a text that contains `: `"),
    ("services:\n  web: {}\n §api: {}\n", "did not find expected"),
    ("services: §@x\n", "quote a text that begins with this character"),
    ('services: §"x\n', "unexpected end"),
    ("services: {}\n§---\nservices: {}\n", "second document"),
    ("§- services\n", "must be a mapping"),
    ("§services\n", "must be a mapping"),
    ("services: {§{a: b}: c}\n", "a key must be a word"),
    ("services: {§[a]: c}\n", "a key must be a word"),
    ("services: {a: §*b}\n", "alias `*b` has no anchor `&b` before it"),
    ("services: &a {b: §*a}\n", "inside the value that it repeats"),
    ("services: {a: &x {}, §*x : {}}\n", "cannot be a key"),
    ("services: " + "[" * 31 + "§" + "[" * 9, "nested deeper than 32 levels"),
    ("services: {a: " + "{a: " * 30 + "§{a: b", "nested deeper than 32 levels"),
    ("§", "the configuration is empty"),
    ("§# only a comment\n", "the configuration is empty"),
    ("§{}\n", "the configuration is empty"),
    ("§~\n", "the configuration is empty"),
]


@pytest.mark.parametrize(("text", "said"), SYNTAX, ids=[row[0][:30] for row in SYNTAX])
def test_a_file_that_is_no_mapping_in_yaml(text: str, said: str) -> None:
    text, places = marked(text)
    found = problems(text)
    assert len(found) == 1
    assert said in found[0].message, found[0]
    assert places == [(found[0].line, found[0].column)], found[0]


def test_a_comment_at_the_start_is_where_an_empty_file_begins() -> None:
    assert [(p.line, p.column) for p in problems("# a\n\n# b\n")] == [(1, 1)]


def test_keys_that_stand_twice() -> None:
    assert_problem("pools: {p: {servers: [192.0.2.1:80]}}\n§pools: {}\n" + SERVICE, "", "first in line 1")
    found = problems(
        "services:\n  s: {listen: 192.0.2.9:80, pool: p}\n  t: {pool: p, listen: 192.0.2.8:80, pool: q}" + POOL
    )
    assert [(p.line, p.column, p.message) for p in found] == [
        (3, 38, "key `pool` stands here a second time; first in line 3")
    ]


@pytest.mark.parametrize("tag", ["!!str", "!x", "!!python/object:os.system", "!<tag:yaml.org,2002:int>"])
def test_tags_are_refused(tag: str) -> None:
    found = problems(f"hash_seed: {tag} 5" + TAIL)
    assert [(p.line, p.column) for p in found] == [(1, 12)]
    assert "tags are not used here" in found[0].message
    assert "tags are not used here" in problems(f"api: {tag} {{}}" + TAIL)[0].message


def test_aliases_and_merges() -> None:
    read = configuration(
        """
services:
  a: &a {listen: 192.0.2.9:80, pool: &pool p, retries: 7, idle_timeout: 9s}
  b: {retries: 1, <<: *a, listen: 192.0.2.9:81}
  c:
    <<: [{retries: 2}, *a]
    listen: 192.0.2.9:82
    pool: *pool
  "d":
    <<: [*a, {retries: 2}]
    listen: 192.0.2.9:83
"""
        + POOL
    )
    assert [s.retries for s in read.services.values()] == [7, 1, 2, 7]
    assert [s.idle_timeout_s for s in read.services.values()] == [9.0] * 4
    assert read.services["b"].listen[0].first == 81


def test_what_merges_badly() -> None:
    assert_problem(
        "services: {s: {<<: §x, listen: 192.0.2.9:80, pool: p}}" + POOL, "services.s", "`<<` merges a mapping"
    )
    assert_problem('services: {s: {§"<<": {}, listen: 192.0.2.9:80, pool: p}}' + POOL, 'services.s."<<"', "unknown key")


def test_a_problem_in_a_merged_value_stands_where_it_was_written() -> None:
    text = "services:\n  a: &a {listen: 192.0.2.9:80, pool: p, retries: §x}\n  b: {<<: *a, listen: 192.0.2.9:81}" + POOL
    clean, places = marked(text)
    assert [(p.line, p.column) for p in problems(clean)] == places * 2


def bomb() -> str:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


def merge_bomb() -> str:
    keys = ", ".join(f"k{n}: v" for n in range(1000))
    return f"a: &a {{{keys}}}\nb: {{" + "<<: *a, " * 100_000 + "}"


HOSTILE = {
    "billion laughs": (bomb, "aliases count as what they repeat"),
    "merges": (merge_bomb, "aliases count as what they repeat"),
    "too big": (lambda: "#" * (8 * 1024 * 1024 + 1), "8 MiB"),
    "lists in lists": (lambda: "services: " + "[" * 4_000_000, "nested deeper"),
    "mappings in mappings": (lambda: "services: " + "{a: " * 1_000_000, "nested deeper"),
    "dashes": (lambda: "- " * 2_000_000, "nested deeper"),
    "questions": (lambda: "? " * 2_000_000, "a key must be a word"),
    "many values": (lambda: "[" + "a," * 1_100_000, "more than 1000000 values"),
    "many keys": (lambda: "services: {" + ",".join(f"{n}: x" for n in range(60_000)) + "}", "only 1000 are shown"),
    "unknown keys": (lambda: "services: {s: {" + ",".join(f"{n}: x" for n in range(60_000)) + "}}", "only 1000"),
    "bad servers": (lambda: "pools: {p: {servers: [" + "a," * 200_000 + "]}}", "at most 16384"),
    "bad pools": (lambda: "pools: {" + ",".join(f"p{n}: {{servers: [x]}}" for n in range(20_000)) + "}", "only 1000"),
    "a long word": (lambda: "services: {" + "x" * 8_000_000 + ": {}}", "not valid YAML"),
    "a long value": (lambda: "services: {s: {pool: " + "x" * 8_000_000 + "}}", "is not a name"),
    "misspelt pools": (
        lambda: (
            "services: {"
            + ",".join(f"s{n}: {{listen: 192.0.2.9:{n + 1}, pool: pools-{n}}}" for n in range(10_000))
            + "}\npools: {"
            + ",".join(f"pool-{n}: {{servers: [192.0.2.1:80]}}" for n in range(10_000))
            + "}"
        ),
        "only 1000",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_a_clear_error_soon(name: str) -> None:
    make, said = HOSTILE[name]
    text = make()
    started = time.process_time()
    found = problems(text)
    took = time.process_time() - started
    assert any(said in p.message for p in found), found[:3]
    assert len(found) <= 1001
    assert all(len(p.message) + len(p.path) < 1000 for p in found)
    assert took < 5 * slowness(), f"{took:.1f} s of CPU"


ENCODINGS = [
    (("services: {}").encode("utf-16"), 1, 1, "is UTF-16; save it as UTF-8"),
    (("services: {}").encode("utf-32"), 1, 1, "is UTF-32; save it as UTF-8"),
    (("services: {}").encode("utf-16-le"), 1, 2, "NUL byte"),
    ("services: {}\n# caf\xe9\n".encode("latin-1"), 2, 6, "byte 0xe9 is not UTF-8"),
    (b"services:\n  a\0b: {}", 2, 4, "NUL byte"),
    (b"services:\n  a: \x1b[31m", 2, 6, "control character U+001B"),
    ("a\ufffe".encode(), 1, 2, "control character U+FFFE"),
    (b"\xef\xbb\xbfservices: [", 1, 12, "the file ends too early"),
]


@pytest.mark.parametrize(("data", "line", "column", "said"), ENCODINGS, ids=[row[3] for row in ENCODINGS])
def test_bytes_that_are_no_text(data: bytes, line: int, column: int, said: str) -> None:
    found = problems(data)
    assert [(p.line, p.column) for p in found] == [(line, column)]
    assert said in found[0].message


def test_a_byte_order_mark_of_utf_8_and_dos_line_ends_are_fine() -> None:
    text = "\ufeff" + (POOL + SERVICE + "# é\n").replace("\n", "\r\n")
    assert list(loaded(text).configuration.services) == ["s"]


@pytest.mark.parametrize(("port", "becomes"), [({}, 80), ({"PORT": "81"}, 81), ({"PORT": ""}, 80)])
def test_the_environment_in_values_and_keys(port: dict[str, str], becomes: int) -> None:
    text = "services: {'${N}': {listen: '${VIP}:${PORT:-80}', pool: p}}\nhash_seed: a$$b$c${EMPTY}\n" + POOL
    read = loaded(text, {"VIP": "192.0.2.9", "EMPTY": "", "N": "x", **port}).configuration
    assert str(read.services["x"].listen[0]) == f"192.0.2.9:{becomes}"
    assert read.hash_seed == configuration("hash_seed: 'a$b$c'" + TAIL).hash_seed


def test_what_the_environment_holds_stays_one_value() -> None:
    found = problems(
        "services: {s: {listen: 192.0.2.9:80, pool: '${X}'}}" + POOL, {"X": "p}, t: {listen: 192.0.2.9:81"}
    )
    assert [p.path for p in found] == ["services.s.pool"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("§'${GONE}'", "environment variable GONE is not set"),
        ("§'a${GONE}b'", "environment variable GONE is not set"),
        ("§'${}'", "is no reference"),
        ("§'${a-b}'", "is no reference"),
        ("§'${OPEN'", "is no reference"),
        ("§'${1}'", "is no reference"),
    ],
)
def test_references_that_lead_nowhere(value: str, said: str) -> None:
    assert_problem(f"services: {{s: {{listen: 192.0.2.9:80, pool: {value}}}}}" + POOL, "services.s.pool", said)


def test_the_pure_parser_reads_and_refuses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    good = "# x\n" + TAIL + "hash_seed: 'x'\nproxy:\n  workers: 2\n"
    fast = loaded(good).configuration
    bad = [text for text, _ in SYNTAX if len(text) < 200]
    lines = [[p.line for p in problems(text.replace("§", ""))] for text in bad]
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert loaded(good).configuration == fast
    assert len(lines) >= 15
    assert [[p.line for p in problems(text.replace("§", ""))] for text in bad] == lines
