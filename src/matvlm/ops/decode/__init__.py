"""Kernels for one step of decoding: a decoder layer in three or four launches, few enough to be bound by memory.

Each has a torch form that it is tested against in tests/gpu. Shapes: batch b (1 to `MAX_BATCH`), hidden size d.
"""

MAX_BATCH = 16
"""Sequences that a step decodes at most."""
