# SPDX-License-Identifier: Apache-2.0
"""Who owns a VIP, on the wire: addresses, gratuitous ARP, VRRP. Never decides whether a node should own one."""
