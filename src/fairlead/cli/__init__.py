# SPDX-License-Identifier: Apache-2.0
"""Terminal verbs, an ordinary client of the API.

Invariant: imports only ``model``, ``errors``, click and the standard library (PyYAML when asked for YAML).
"""
