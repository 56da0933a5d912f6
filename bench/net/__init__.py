# SPDX-License-Identifier: Apache-2.0
"""Load balancers between network namespaces: rows B7, B8 and B9 of ``make bench``."""
