# SPDX-License-Identifier: Apache-2.0
"""The schema: one pydantic model per mapping of the file, a description per key; the reference is generated from it.

Invariant: models accept what configuration files may say, whether or not this version can do it (``config.gaps``).
"""
