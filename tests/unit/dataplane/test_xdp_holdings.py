# SPDX-License-Identifier: Apache-2.0
"""What the XDP data plane holds, without a kernel: names, ids, and what still names what."""

from __future__ import annotations

from array import array

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.space import Ids
from fairlead.errors import DataPlaneError
from fairlead.model.service import Forwarding
from support.models import listener, server_spec, service_spec, table_spec

A = "10.0.0.1:80"
KEY = f"web/{A}"


@pytest.fixture
def held() -> Holdings:
    made = Holdings(250)
    made.server_ids.capacity = made.service_ids.capacity = 16
    made.extents.grow(64)
    made.put_server(server_spec(KEY, A))
    return made


def test_a_server_stays_while_a_table_names_it_even_one_that_was_written_twice(held: Holdings) -> None:
    one, other = table_spec({A: 1}, size=1), table_spec({A: 2}, size=1)
    for digest, spec in (("aa" * 16, one), ("aa" * 16, one), ("bb" * 16, other)):
        held.put_table(digest, spec, array("H", [0]))
    for digest in ("aa" * 16, "bb" * 16):
        with pytest.raises(DataPlaneError, match=f"table {digest} names it"):
            held.delete_server(KEY)
        held.delete_table(digest)
    held.delete_server(KEY)
    assert KEY not in held.servers


def test_the_program_is_told_how_many_ranges_of_ports_there_are(held: Holdings) -> None:
    held.put_service(service_spec(forwarding=Forwarding.NAT))
    wide, narrow = listener("web", "192.0.2.10:1024-2047"), listener("web", "192.0.2.10:80")

    def told() -> int:
        return abi.Settings.unpack(held.mirrors["settings"].content[bytes(4)]).wide

    held.open(wide)
    assert told() == 1
    held.open(narrow)
    held.close(wide)
    assert told() == 0


def test_ids_run_out_and_come_back_last() -> None:
    ids = Ids(4)
    assert [ids.take() for _ in range(4)] == [1, 2, 3, None]
    ids.release(1)
    ids.release(2)
    assert [ids.take() for _ in range(3)] == [1, 2, None]
