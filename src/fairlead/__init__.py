# SPDX-License-Identifier: Apache-2.0
"""fairlead: a standalone layer-4 load balancer.

Pure rooms decide, I/O rooms act, one room (``app``) wires them; see ARCHITECTURE.md.
"""

__version__ = "0.1.0"
