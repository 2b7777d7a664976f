"""A made-up `profile.csv` in the shape of the preset `paper-profile`, from a simple model of the hardware.

Nothing in it was measured; the rates are those of a device that reads weights and cache once a token and then pays
something for every kernel that it starts.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from figure_data import PROVENANCE

from matvlm.config import BaseCell
from matvlm.report.settings import Report

PROMPT, GENERATED, BATCHES = 768, (1024, 2048, 4096, 8192, 16384, 32768), (1, 8)
LAYOUTS = {"": 0, "even-12.5": 4, "even-25": 8, "even-50": 16, "even-100": 32}
"""Layers replaced, of 32."""
WEIGHTS, DEVICE, BANDWIDTH = 6.4e9, 80e9, 2.8e12
OVERHEAD = {"fused": 4e-4, "transformers": 0.016, "generate-eager": 0.026, "generate-sdpa": 0.022}
"""Seconds a step beside reading."""
MISSING = "generate-flash_attention_2"
NOTE = "flash_attention_2: package flash-attn is not installed"
FIGURES = ("prefill_s", "decode_tokens_per_s", "peak_memory_bytes")


def settings(preset: str = "paper-profile", *, scale: bool = True) -> Report:
    """Settings of the preset's report."""
    return Report(preset=preset, depth=32, base=BaseCell(), tasks=(), at_paper_scale=scale)


def profile_frame(
    runtimes: tuple[str, ...] = ("fused",), batches: tuple[int, ...] = BATCHES, repeats: int = 3
) -> pd.DataFrame:
    """Rows of both protocols; ``runtimes`` are those of `same_runtime`."""
    rows = []
    for layout in LAYOUTS:
        own = ("generate-eager", "generate-sdpa", MISSING) if not layout else ("fused",)
        pairs = [*(("same_runtime", runtime) for runtime in runtimes), *(("paper", runtime) for runtime in own)]
        for protocol, runtime in pairs:
            for batch in batches:
                for tokens in GENERATED:
                    rows += _rows(layout, protocol, runtime, batch, tokens, repeats)
    return pd.DataFrame([row | PROVENANCE | {"device": "NVIDIA H100 80GB HBM3"} for row in rows])


def write(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame as CSV; returns its path."""
    frame.to_csv(path, index=False)
    return path


def _rows(layout: str, protocol: str, runtime: str, batch: int, tokens: int, repeats: int) -> list[dict]:
    point = {"model": "student" if layout else "teacher", "layout": layout, "protocol": protocol}
    point |= {"runtime": runtime, "batch": batch, "prompt_tokens": PROMPT, "generated_tokens": tokens}
    context = PROMPT + tokens
    point |= {"beyond_positions": context > 2048, "repeat": 0}
    replaced = LAYOUTS[layout]
    weights = WEIGHTS + 53e6 * replaced
    cache = batch * ((32 - replaced) * 2 * 2560 * context + replaced * 33 * 80 * 80) * 2.0
    working = (2.4e8 if runtime == "fused" else 5e8) + (1.3 * cache if runtime == "generate-eager" else 0)
    peak = weights + cache + working
    empty = dict.fromkeys(FIGURES)
    if runtime == MISSING:
        return [point | empty | {"note": NOTE}]
    if peak > DEVICE:
        return [point | empty]
    rows = []
    for repeat in range(repeats):
        wobble = 1 + 0.01 * math.sin(2 * repeat + tokens + len(layout))
        step = (OVERHEAD[runtime] + (weights + cache) / BANDWIDTH * 1.15) * wobble
        figures = {
            "prefill_s": 0.06 * batch * wobble,
            "context_prefill_s": 7e-5 * batch * context * wobble if context < 20000 else None,
            "decode_tokens_per_s": batch / step,
            "generated_decode_tokens_per_s": batch / step * 1.004 if tokens == 4096 else None,
            "energy_j_per_token": 0.5 * step * 500,
            "copy_bandwidth_bytes_per_s": BANDWIDTH,
            "bandwidth_limit_tokens_per_s": batch * BANDWIDTH / (weights + cache),
            "peak_memory_bytes": int(peak),
            "reserved_memory_bytes": int(peak * 1.03),
            "device_memory_bytes": int(peak * 1.03 + 5e8),
            "predicted_memory_bytes": int(weights + cache + 2e8),
            "weight_bytes": int(weights),
            "cache_bytes": int(cache),
        }
        rows.append(point | figures | {"repeat": repeat, "note": ""})
    return rows
