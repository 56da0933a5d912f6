# SPDX-License-Identifier: Apache-2.0
"""Wire protocols without I/O: bytes and moments in, values out."""
