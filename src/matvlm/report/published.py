"""The paper's numbers that reports show beside ours, marked `published`: read off its Figure 1 (within about
one per cent) or taken from its abstract. No other number of the paper is known here."""

from __future__ import annotations

MARK = "published, read from figure"
LAYOUTS = ("", "even-12.5", "even-25", "even-50")
"""Columns of the tables below; the empty one is the teacher, TinyLLaVA."""
TOKENS_PER_S: dict[int, tuple[float | None, ...]] = {
    1024: (32, 114, 114, 115),
    2048: (41, 110, 112, 113),
    4096: (41, 101, 106, 107),
    8192: (38, 88, 95, 98),
    16384: (31, 71, 79, 85),
    32768: (None, 51, 60, 72),
}
"""Decoded tokens per second by generated tokens; None: not shown."""
MEMORY_GB: dict[int, tuple[float | None, ...]] = {
    1024: (7.4, 7.2, 7.1, 7.1),
    2048: (8.0, 7.5, 7.4, 7.3),
    4096: (9.3, 8.4, 8.3, 8.0),
    8192: (11.9, 10.4, 10.1, 9.3),
    16384: (17.1, 14.3, 13.7, 12.4),
    32768: (None, 22.1, 20.8, 18.3),
}
"""Memory in GB (10^9 bytes) by generated tokens."""
DEPTH, WIDTH = 32, 2560
"""Decoder layers and hidden size of the model that the numbers are of, TinyLLaVA-Phi-2-SigLIP-3.1B."""
SPEEDUP = 3.6
"""Tokens per second against the teacher's, at most (arXiv abstract; ICCV's says 4.3)."""
MEMORY_SAVING = 0.275
"""Share of GPU memory saved, of the 50 % hybrid at 16k generated tokens."""


def memory_saved(layout: str, tokens: int) -> float:
    """Share of memory that a hybrid saves after so many generated tokens, as far as the figure can be read."""
    row = MEMORY_GB[tokens]
    return 1 - row[LAYOUTS.index(layout)] / row[0]
