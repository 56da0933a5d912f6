# SPDX-License-Identifier: Apache-2.0
"""The loops: reconcile, monitor, and the facade of all that the API may ask. Never wire formats, never HTTP."""
