# SPDX-License-Identifier: Apache-2.0
"""The nouns: frozen, slotted dataclasses and enums. Invariant: no behaviour beyond invariants, no I/O, no time."""
