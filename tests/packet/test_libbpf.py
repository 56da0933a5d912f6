# SPDX-License-Identifier: Apache-2.0
"""The ctypes layer: maps, links, pins, and one clear sentence for whatever goes wrong."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.libbpf.binding import library as shared_object
from fairlead.dataplane.xdp.libbpf.binding import possible_cpus
from fairlead.dataplane.xdp.libbpf.hooks import XDP_NATIVE, Link, attached_program
from fairlead.dataplane.xdp.libbpf.maps import EXIST, NOEXIST, BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.errors import DataPlaneError, UnsupportedFeature, VerifierRejected
from support.xdp import bed_object, compiled, ip, own_namespace, program_object

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedObject]:
    with LoadedObject(program_object(), max_entries={"listeners4": 5000, "vips": 4}) as opened:
        yield opened


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of this test's own."""
    subprocess.run(["mount", "-t", "bpf", "bpf", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def listen(number: int) -> bytes:
    return abi.ListenKey4(number.to_bytes(4, "big"), 80, 6).pack()


def test_values_come_back(loaded: LoadedObject) -> None:
    listeners = loaded.maps["listeners4"]
    assert listeners.get(listen(1)) is None
    listeners.put(listen(1), key(7))
    assert listeners.get(listen(1)) == key(7)
    with pytest.raises(KeyError):
        listeners.put(listen(1), key(8), NOEXIST)
    with pytest.raises(KeyError):
        listeners.put(listen(2), key(8), EXIST)
    assert listeners.delete(listen(1))
    assert not listeners.delete(listen(1))


def test_many_at_once(loaded: LoadedObject) -> None:
    """More than one batch, by both ways of listing."""
    listeners = loaded.maps["listeners4"]
    wanted = {listen(n): key(n) for n in range(5000)}
    listeners.put_many(wanted)
    assert dict(listeners.items()) == wanted
    assert set(listeners.keys()) == set(wanted)


def test_a_trie_is_listed_too(loaded: LoadedObject) -> None:
    ranges = loaded.maps["ranges"]
    wanted = {abi.RangeKey(144 + n, bytes(16), 6, 0).pack(): key(n) for n in range(17)}
    for name, value in wanted.items():
        ranges.put(name, value)
    assert dict(ranges.items()) == wanted


def test_a_full_map_says_so(loaded: LoadedObject) -> None:
    with pytest.raises(DataPlaneError, match=r"map vips is full \(4 entries\)"):
        loaded.maps["vips"].put_many({bytes(12) + key(n): key(1) for n in range(5)})


def test_memory_is_shared(loaded: LoadedObject) -> None:
    slots = loaded.maps["slots"]
    with slots.memory() as memory:
        memory[8:16] = b"abcdefgh"
        assert slots.get(key(1)) == b"abcdefgh"
        slots.put(key(1), b"ijklmnop")
        assert memory[8:16] == b"ijklmnop"


def test_every_cpu_has_its_value(loaded: LoadedObject) -> None:
    traffic = loaded.maps["server_traffic"]
    size = abi.Traffic.LAYOUT.size
    traffic.put(key(3), abi.Traffic(1, 2, 3, 4, 5).pack() * possible_cpus())
    raw = traffic.get(key(3))
    assert raw is not None
    assert len(raw) == size * possible_cpus()
    assert abi.sum_traffic(raw) == abi.Traffic(*(n * possible_cpus() for n in (1, 2, 3, 4, 5)))


def test_constants_are_set() -> None:
    """By name, whatever their size and place."""
    with LoadedObject(program_object(), constants={"hop_ttl": 7, "fast_path": 0, "block6_mask": 1023}) as opened:
        raw = BpfMap(os.dup(_rodata(opened))).get(key(0))
    assert raw is not None
    with LoadedObject(program_object()) as untouched:
        plain = BpfMap(os.dup(_rodata(untouched))).get(key(0))
    assert plain is not None
    assert sum(a != b for a, b in zip(raw, plain, strict=True)) >= 3


def _rodata(opened: LoadedObject) -> int:
    return next(found for name, found in opened.sections.items() if name.endswith(".rodata")).descriptor


def test_maps_are_used_again(loaded: LoadedObject) -> None:
    with LoadedObject(program_object(), reuse={"services": loaded.maps["services"]}) as second:
        assert second.maps["services"].id == loaded.maps["services"].id


def test_a_map_that_does_not_fit_is_refused(loaded: LoadedObject) -> None:
    with pytest.raises(DataPlaneError, match="map services in the kernel"):
        LoadedObject(program_object(), reuse={"services": loaded.maps["turns"]})


def test_links_and_pins(loaded: LoadedObject, bpffs: Path) -> None:
    """A pinned link outlives its descriptor; a program is replaced only by who knows the old one."""
    with own_namespace(), LoadedObject(bed_object()) as bed:
        ip("link", "add", "here0", "type", "veth", "peer", "name", "there0")
        index = socket.if_nametoindex("here0")
        mine, other = loaded.programs["fairlead"], bed.programs["pass_all"]
        link = Link.attach(mine, index, XDP_NATIVE)
        assert attached_program(index) == mine.id
        with pytest.raises(OSError, match=r"busy|exists") as caught:
            Link.attach(other, index, XDP_NATIVE)
        assert caught.value.errno in (errno.EBUSY, errno.EEXIST)
        link.pin(bpffs / "link")
        link.close()
        assert attached_program(index) == mine.id
        again = Link.at(bpffs / "link")
        assert again.state() == (mine.id, index)
        with pytest.raises(OSError, match="not permitted"):
            again.replace(other, bed.programs["decapsulate"])
        again.replace(other, mine)
        assert again.state() == (other.id, index)
        (bpffs / "link").unlink()
        again.close()
        assert attached_program(index) == 0


def test_pinned_maps(loaded: LoadedObject, bpffs: Path) -> None:
    loaded.maps["servers"].pin(bpffs / "servers")
    again = BpfMap.at(bpffs / "servers")
    assert (again.id, again.name, again.max_entries) == (loaded.maps["servers"].id, "servers", 16384)
    again.close()
    with pytest.raises(FileNotFoundError):
        BpfMap.at(bpffs / "nothing")


def test_the_verifier_is_quoted_in_one_sentence(tmp_path: Path) -> None:
    source = tmp_path / "bad.bpf.c"
    source.write_text(
        "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
        'SEC("xdp") int bad(struct xdp_md *ctx) { return *(int *)(long)ctx->data; }\n'
        'char _license[] SEC("license") = "GPL";\n'
    )
    with pytest.raises(VerifierRejected) as caught:
        LoadedObject(compiled(source))
    assert "\n" not in str(caught.value)
    assert "outside of the packet" in str(caught.value)
    assert "processed" in caught.value.log


def test_a_missing_object_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="is missing: install clang and libbpf-dev"):
        LoadedObject(tmp_path / "absent.bpf.o")


def test_what_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.bpf.o").write_text("not an object")
    with pytest.raises(DataPlaneError, match=r"reading .*text\.bpf\.o"):
        LoadedObject(tmp_path / "text.bpf.o")


def test_a_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise OSError("libbpf.so.1: cannot open shared object file")

    shared_object.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(UnsupportedFeature, match="apt-get install libbpf1"):
        shared_object()


def test_missing_capabilities_say_what_to_do() -> None:
    """Another user may not load programs; the error names the capabilities."""
    path = program_object()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgid(65534)
            os.setuid(65534)
            LoadedObject(path)
        except UnsupportedFeature as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as stream:
        assert "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON" in stream.read()
