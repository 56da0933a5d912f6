# SPDX-License-Identifier: Apache-2.0
"""Which ports of which addresses services are offered at: no two listeners take the same."""

from __future__ import annotations

from bisect import insort
from collections import Counter

from fairlead.model.net import IPAddress, Protocol
from fairlead.model.state import Listener


class Ports:
    """The listeners that are open, by address."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Protocol, IPAddress], list[tuple[int, int, Listener]]] = {}
        self._addresses: Counter[IPAddress] = Counter()

    def open(self, listener: Listener) -> bool:
        """One more; whether it is the first one at its address."""
        listen = listener.listen
        rows = self._rows.setdefault((listener.protocol, listen.address), [])
        insort(rows, (listen.first, listen.last, listener), key=lambda it: it[:2])
        self._addresses[listen.address] += 1
        return self._addresses[listen.address] == 1

    def close(self, listener: Listener) -> bool:
        """One less; whether it was the last one at its address."""
        listen = listener.listen
        self._rows[listener.protocol, listen.address].remove((listen.first, listen.last, listener))
        self._addresses[listen.address] -= 1
        if self._addresses[listen.address]:
            return False
        del self._addresses[listen.address]
        return True

    def conflict(self, listener: Listener) -> Listener | None:
        """Another listener that wants a port in common."""
        listen = listener.listen
        for first, last, held in self._rows.get((listener.protocol, listen.address), ()):
            if first > listen.last:
                break
            if last >= listen.first and held != listener:
                return held
        return None
