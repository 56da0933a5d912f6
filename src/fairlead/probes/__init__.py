# SPDX-License-Identifier: Apache-2.0
"""One attempt to find out whether a server works, per type of monitor. Never decides up or down."""
