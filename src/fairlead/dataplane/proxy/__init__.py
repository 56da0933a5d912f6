# SPDX-License-Identifier: Apache-2.0
"""The userspace data plane: C workers (one process per CPU) move the bytes, this driver tells them what to hold."""
