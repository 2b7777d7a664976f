"""Kernels for one step of decoding: a decoder layer in four or five launches, few enough to be bound by memory.

What they compute is tested against the plain pass in tests/gpu. For one sequence, on Hopper and later, each is
launched while the one before it ends (programmatic dependent launch): it waits for that one's results where it
first needs them, and has its first tile of weights by then.
"""

MAX_BATCH = 16
"""Sequences that a step decodes at most."""
