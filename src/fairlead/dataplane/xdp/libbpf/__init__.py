# SPDX-License-Identifier: Apache-2.0
"""libbpf.so.1 by ctypes: objects, maps, programs, links and pins as Python objects.

Invariant: the only package of the data plane that imports ctypes. Nothing is loaded at import; the library is opened on
first use. Every failure is an error with one sentence that says what to do. Structs: ``linux/bpf.h`` and ``bpf/bpf.h``
1.1.
"""
