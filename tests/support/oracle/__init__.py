# SPDX-License-Identifier: Apache-2.0
"""An independent forwarder in plain Python: what the XDP program should do with a packet, and why.

It shares no code with the program or its driver; only the names of counters are the same. Time stands still:
nothing expires here. Checksums are worked out by arithmetic modulo 65535, not by folding.
"""
