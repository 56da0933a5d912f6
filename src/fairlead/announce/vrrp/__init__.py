# SPDX-License-Identifier: Apache-2.0
"""The process that speaks VRRP and holds the VIPs: small, on its own, on the monotonic clock."""
