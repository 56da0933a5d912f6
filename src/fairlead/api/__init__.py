# SPDX-License-Identifier: Apache-2.0
"""HTTP on a unix socket: routes, metrics, the OpenAPI document. Invariant: knows the engine only as a ``Facade``."""
