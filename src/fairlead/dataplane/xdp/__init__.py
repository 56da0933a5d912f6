# SPDX-License-Identifier: Apache-2.0
"""The XDP data plane: nat, fullnat, dsr and tunnel in the kernel, driven from here.

Invariant: the kernel forwards by what stands in the pinned maps; nothing in this room lies on the packet path.
"""
