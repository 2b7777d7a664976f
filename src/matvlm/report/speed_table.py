"""The table of speed and memory, from `profile.csv`."""

from __future__ import annotations

import pandas as pd

from matvlm.report import published
from matvlm.report.measured import OUT_OF_MEMORY, Point, Spread, layouts, points, ratio, rows_at, saving, spread
from matvlm.report.settings import Report
from matvlm.report.table import Column, Entry, Row, Table, repeats

COLUMNS = (
    Column("Context, tokens", numeric=False),
    Column("Model", numeric=False),
    Column("Layers replaced", numeric=False),
    Column("Prompt pass, s"),
    Column("Decoding, tokens/s"),
    Column("Decoding, × teacher"),
    Column("Peak memory, MB"),
    Column("Memory saved, %"),
)
PUBLISHED = (Column(f"Tokens/s ({published.MARK})"), Column(f"Memory, GB ({published.MARK})"))


def speed_table(profile: pd.DataFrame, settings: Report) -> Table:
    """Every model at every measured point, beside the teacher at the same point.

    Args:
        profile: `profile.csv`.
    """
    at = points(profile)
    compared = any(point.generated_tokens in published.TOKENS_PER_S for point in at)
    models = [None, *layouts(profile)]
    rows = []
    for point in at:
        for layout in models:
            measured = rows_at(profile, point, layout)
            if measured.empty:
                continue
            entries = [_point_name(point, at), *_figures(profile, point, layout, settings)]
            if compared:
                entries += _published(point, layout)
            kind = {None: "teacher", settings.base.layout: "base"}.get(layout, "student")
            rows.append(Row(kind, tuple(entries)))
    return Table(
        name="speed",
        title=f"Speed and memory (preset {settings.preset})",
        columns=COLUMNS + PUBLISHED * compared,
        rows=tuple(rows),
        notes=_notes(profile, compared, settings),
        command=settings.command("table_speed"),
    )


def _figures(profile: pd.DataFrame, point: Point, layout: str | None, settings: Report) -> list[Entry]:
    """The cells of one model at one point, all columns of `COLUMNS` but the first."""
    name = "teacher" if layout is None else layout + (" (base)" if layout == settings.base.layout else "")
    replaced = Entry() if layout is None else Entry(f"{settings.replaced(layout)} of {settings.depth}")
    mine, teacher = rows_at(profile, point, layout), rows_at(profile, point, None)
    prefill, decode, memory = (
        spread(mine, column) for column in ("prefill_s", "decode_tokens_per_s", "peak_memory_bytes")
    )
    if decode is None:
        return [Entry(name), replaced, Entry(), Entry(OUT_OF_MEMORY), *[Entry()] * 3]
    gain: Spread | None = None
    saved: Spread | None = None
    if layout is not None:
        gain = ratio(decode, spread(teacher, "decode_tokens_per_s"))
        saved = saving(memory, spread(teacher, "peak_memory_bytes"))
    return [
        Entry(name),
        replaced,
        repeats(prefill),
        repeats(decode),
        repeats(gain),
        repeats(memory, 1e-6),
        _per_cent(saved),
    ]


def _per_cent(saved: Spread | None) -> Entry:
    if saved is None:
        return Entry()
    text, low, high = (f"{100 * value:z.1f}" for value in (saved.median, saved.low, saved.high))
    return Entry(text.replace("-", "−"), "" if low == high else f"({low} to {high})".replace("-", "−"))


def _point_name(point: Point, at: list[Point]) -> Entry:
    """Context as prompt and generated tokens; batch and protocol only where they differ between points."""
    text = f"{point.context:,} ({point.prompt_tokens:,} + {point.generated_tokens:,})"
    if len({other.batch for other in at}) > 1:
        text += f", batch {point.batch}"
    if len({other.protocol for other in at}) > 1:
        text += f", {point.protocol}"
    return Entry(text)


def _published(point: Point, layout: str | None) -> list[Entry]:
    name = layout or ""
    if name not in published.LAYOUTS:
        return [Entry(), Entry()]
    at = published.LAYOUTS.index(name)
    found = (figures.get(point.generated_tokens) for figures in (published.TOKENS_PER_S, published.MEMORY_GB))
    values = (None if one is None else one[at] for one in found)
    return [Entry() if value is None else Entry(f"{value:g}") for value in values]


def _notes(profile: pd.DataFrame, compared: bool, settings: Report) -> tuple[str, ...]:
    counts = profile.groupby(["protocol", "batch", "prompt_tokens", "generated_tokens", "model", "layout"]).size()
    many = str(counts.max())
    notes = [
        f"Medians of {many} repeat{'s' * (many != '1')}; in brackets the smallest and the largest, of a ratio "
        "what these allow at most. Context: prompt (image included) + generated tokens.",
        "Decoding is the rate at that context, not an average over the run. Teacher and hybrids run through the "
        "same code, so that a difference is one of the architecture. Memory is what the allocator had given out "
        "at most, weights included; 1 MB is 1,000,000 bytes.",
    ]
    if "device" in profile and (devices := sorted(set(profile["device"].astype(str)) - {""})):
        notes.append(f"Device: {', '.join(devices)}.")
    source = (
        f"The paper claims up to {published.SPEEDUP} times the teacher's tokens per second and "
        f"{100 * published.MEMORY_SAVING:g} % less memory (50 % of the layers, 16k generated tokens)"
    )
    if compared:
        source += f"; columns marked {published.MARK} are its Figure 1 at the same number of generated tokens"
    if not settings.at_paper_scale:
        source += ", for TinyLLaVA-Phi-2-SigLIP-3.1B on other hardware, so that sizes do not compare"
    return (*notes, source + ".")
