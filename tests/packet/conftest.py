# SPDX-License-Identifier: Apache-2.0
"""The bed, once for all packet tests of a process; every module gets a freshly loaded program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.dataplane.xdp.settle import Settler
from packet.settled import FOR_EVER
from support.xdp import Bed, bed_object, build_links, open_bed, own_namespace, settle_object


@pytest.fixture(scope="package")
def namespace() -> Iterator[None]:
    with own_namespace(), LoadedObject(bed_object()) as stub:
        links = build_links(stub)
        yield
        for link in links:
            link.close()


@pytest.fixture(scope="module", params=[1, 0], ids=["fast", "general"])
def bed(namespace: None, request: pytest.FixtureRequest) -> Iterator[Bed]:
    with open_bed(fast_path=request.param, hop_ttl=1000 * request.param) as opened:
        yield opened


@pytest.fixture
def settler(bed: Bed) -> Iterator[Settler]:
    """Of beds whose epochs last for ever: it need not look how long they are."""
    made = Settler(settle_object(), bed.maps, FOR_EVER)
    yield made
    made.close()
