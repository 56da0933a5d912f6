# SPDX-License-Identifier: Apache-2.0
"""Decisions: health, effective weights, tables, plans. Invariant: values in, values out; no clock, chance or I/O."""
