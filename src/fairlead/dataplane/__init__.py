# SPDX-License-Identifier: Apache-2.0
"""Data planes: one contract, several drivers. Invariant: none knows health or configuration files."""
