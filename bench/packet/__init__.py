# SPDX-License-Identifier: Apache-2.0
"""What the XDP program costs per packet, against floors in the same run: ``make bench-packet``."""
