"""Columns of `profile.csv`, which profiling writes, `matvlm.report.collect` gathers and reports read."""

from __future__ import annotations

PROFILE_KEY = (
    "protocol",
    "runtime",
    "batch",
    "prompt_tokens",
    "model",
    "layout",
    "generated_tokens",
    "repeat",
)
"""What tells rows apart, in the order in which they are sorted."""
PROFILE_MEASURED = ("prefill_s", "decode_tokens_per_s", "peak_memory_bytes")
"""Figures that every row has, though they may be empty."""
PROFILE_FIGURES = (
    "prefill_s",
    "context_prefill_s",
    "decode_tokens_per_s",
    "generated_decode_tokens_per_s",
    "energy_j_per_token",
    "copy_bandwidth_bytes_per_s",
    "bandwidth_limit_tokens_per_s",
    "peak_memory_bytes",
    "reserved_memory_bytes",
    "device_memory_bytes",
    "predicted_memory_bytes",
    "weight_bytes",
    "cache_bytes",
)
"""All figures. A file that an earlier version wrote lacks some, which then count as empty."""
PROFILE_MARKS = ("beyond_positions", "note")
"""Whether the context exceeds the positions that the model is made for, and why a row has no figures; they may be
lacking too."""
