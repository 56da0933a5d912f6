# SPDX-License-Identifier: Apache-2.0
"""VRRP, RFC 9568 (version 3) and RFC 3768 (version 2): packet and state machine, without sockets or clocks."""
