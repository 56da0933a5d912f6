# SPDX-License-Identifier: Apache-2.0
"""Configuration: text in, a Configuration or all that is wrong with it out.

Invariants: no I/O; what is checked is what is applied; every problem has its place; whatever the bytes are, the answer
is a Configuration or a ConfigError, soon. The way of a file: ``text`` (bytes to text), ``reader`` (text to a tree with
places), ``tree`` (files merged), ``validate`` (``schema``), ``gaps``, ``checks``, ``build`` (the model's nouns).
"""

from fairlead.config.load import Loaded, Source, load
from fairlead.config.options import from_options

__all__ = ["Loaded", "Source", "from_options", "load"]
