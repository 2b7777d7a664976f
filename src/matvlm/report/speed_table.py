"""The table of speed and memory, from `profile.csv`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from matvlm.profiling.points import PAPER
from matvlm.report import measured, published
from matvlm.report.measured import Point, Spread, best_runtime, layouts, points, rows_at, spread
from matvlm.report.settings import Report
from matvlm.report.table import SECTION, Column, Entry, Row, Table, minus, repeats

RATE, MEMORY = "decode_tokens_per_s", "peak_memory_bytes"
BEYOND = "†"
"""Marks contexts that are longer than the model is made for."""
TITLES = {
    "same_runtime": "All models in one runtime",
    PAPER: "Each model in its own runtime, as the paper measured",
}


@dataclass(frozen=True)
class Line:
    """One row of the table: a model at a point, in one runtime."""

    profile: pd.DataFrame
    point: Point
    layout: str | None
    runtime: str
    settings: Report

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Its repeats."""
        return rows_at(self.profile, self.point, self.layout, self.runtime)

    def of(self, column: str) -> Spread | None:
        """Its median of a column."""
        return spread(self.rows, column)

    def is_reference(self, column: str) -> bool:
        """Whether other models are held against it: the teacher in the runtime that serves the column best."""
        return self.layout is None and self.runtime == best_runtime(self.profile, self.point, None, column)

    def against(
        self, column: str, compare: Callable[[Spread | None, Spread | None], Spread | None]
    ) -> Spread | None:
        """What it makes of the reference's value of a column; None for the reference itself."""
        if self.is_reference(column):
            return None
        return compare(self.of(column), measured.spread_at(self.profile, self.point, None, column))

    def share(self, column: str, whole: str) -> Spread | None:
        """Its value of one column as a share of another one's."""
        return measured.ratio(self.of(column), self.of(whole))


def _context(line: Line) -> Entry:
    point = line.point
    return Entry(f"{point.context:,}{_mark(line)} ({point.prompt_tokens:,} + {point.generated_tokens:,})")


def _generated(line: Line) -> Entry:
    return Entry(f"{line.point.generated_tokens:,}{_mark(line)}")


def _mark(line: Line) -> str:
    return BEYOND if line.rows["beyond_positions"].any() else ""


def _model(line: Line) -> Entry:
    if line.layout is None:
        attention = line.runtime.removeprefix("generate-")
        return Entry(f"teacher, {attention}" if line.point.protocol == PAPER else "teacher")
    return Entry(line.layout + (" (base)" if line.layout == line.settings.base.layout else ""))


def _replaced(line: Line) -> Entry:
    if line.layout is None:
        return Entry()
    return Entry(f"{line.settings.replaced(line.layout)} of {line.settings.depth}")


def _rate(line: Line) -> Entry:
    """Bold where other rows are held against it, if there are several that they could be."""
    if line.of(RATE) is None:
        why = measured.why_empty(line.rows)
        return Entry(why if why == measured.OUT_OF_MEMORY else "not run")
    return replace(repeats(line.of(RATE)), bold=_stands_out(line, RATE))


def _memory(scale: float) -> Callable[[Line], Entry]:
    return lambda line: replace(repeats(line.of(MEMORY), scale), bold=_stands_out(line, MEMORY))


def _stands_out(line: Line, column: str) -> bool:
    return line.point.protocol == PAPER and line.is_reference(column)


def _per_cent(share: Spread | None) -> Entry:
    if share is None:
        return Entry()
    text, low, high = (f"{100 * value:z.1f}" for value in (share.median, share.low, share.high))
    return Entry(minus(text), "" if low == high else minus(f"({low} to {high})"))


def _median(share: Spread | None, digits: int) -> Entry:
    """Without bounds, which a column beside it has."""
    return Entry() if share is None else Entry(f"{100 * share.median:.{digits}f}")


def _published(figures: dict[int, tuple[float | None, ...]]) -> Callable[[Line], Entry]:
    def entry(line: Line) -> Entry:
        """Beside one row of a model at a point, of batch size 1."""
        name, row = line.layout or "", figures.get(line.point.generated_tokens)
        repeated = line.layout is None and not line.is_reference(RATE)
        if name not in published.LAYOUTS or row is None or line.point.batch != 1 or repeated:
            return Entry()
        value = row[published.LAYOUTS.index(name)]
        return Entry() if value is None else Entry(f"{value:g}")

    return entry


def _columns(
    profile: pd.DataFrame, *, long: bool, compared: bool
) -> Iterator[tuple[Column, Callable[[Line], Entry]]]:
    """Columns with what fills them; what was not measured at all has none. A ``long`` table is wide enough without
    what its notes can say."""
    scale, unit = (1e-9, "GB") if profile[MEMORY].max() >= 1e9 else (1e-6, "MB")
    if long and profile["prompt_tokens"].nunique() == 1:
        yield Column("Generated tokens", numeric=False), _generated
    else:
        yield Column("Context, tokens", numeric=False), _context
    yield Column("Model", numeric=False), _model
    if not long:
        yield Column("Layers replaced", numeric=False), _replaced
    if profile["context_prefill_s"].notna().any():
        yield Column("Pass over the context, s"), lambda line: repeats(line.of("context_prefill_s"))
    else:
        yield Column("Prompt pass, s"), lambda line: repeats(line.of("prefill_s"))
    yield Column("Decoding, tokens/s"), _rate
    yield Column("Decoding, × teacher"), lambda line: repeats(line.against(RATE, measured.ratio))
    if profile["bandwidth_limit_tokens_per_s"].notna().any():
        limit = "bandwidth_limit_tokens_per_s"
        yield Column("Decoding, % of the limit"), lambda line: _median(line.share(RATE, limit), 0)
    yield Column(f"Peak memory, {unit}"), _memory(scale)
    yield Column("Memory saved, %"), lambda line: _per_cent(line.against(MEMORY, measured.saving))
    if profile["predicted_memory_bytes"].notna().any():
        predicted = "predicted_memory_bytes"
        yield Column("Memory, % of the prediction"), lambda line: _median(line.share(MEMORY, predicted), 1)
    if compared:
        yield Column(f"Tokens/s ({published.MARK})"), _published(published.TOKENS_PER_S)
        yield Column(f"Memory, GB ({published.MARK})"), _published(published.MEMORY_GB)


def speed_table(profile: pd.DataFrame, settings: Report) -> Table:
    """Every model at every measured point, beside the teacher at the same point; a section for each protocol,
    runtime and batch size where there are several.

    Args:
        profile: `profile.csv`.
    """
    at = points(profile)
    # Beside the rates of another model the paper's would ask for a comparison that means nothing.
    compared = settings.at_paper_scale and any(point.generated_tokens in published.TOKENS_PER_S for point in at)
    sections = {_section(point, at): [] for point in at}
    columns = [*_columns(profile, long=len(sections) > 1, compared=compared)]
    for line in _lines(profile, at, settings):
        kind = {None: "teacher", settings.base.layout: "base"}.get(line.layout, "student")
        sections[_section(line.point, at)].append(Row(kind, tuple(fill(line) for _, fill in columns)))
    rows = []
    for title, lines in sections.items():
        rows += [Row(SECTION, (Entry(title),))] * (len(sections) > 1) + lines
    return Table(
        name="speed",
        title=f"Speed and memory (preset {settings.preset})",
        columns=tuple(column for column, _ in columns),
        rows=tuple(rows),
        notes=(*_notes(profile, [column.header for column, _ in columns], settings), _source(compared, settings)),
        command=settings.command("table_speed"),
    )


def _lines(profile: pd.DataFrame, at: list[Point], settings: Report) -> Iterator[Line]:
    """All but those of runtimes that ran nowhere, which a note names."""
    runs = profile.groupby("runtime")["note"].transform(lambda notes: (notes == "").any())
    profile = profile[runs]
    for point in at:
        for layout in (None, *layouts(profile)):
            for runtime in measured.runtimes_at(profile, point, layout):
                yield Line(profile, point, layout, runtime, settings)


def _section(point: Point, at: list[Point]) -> str:
    """Protocol, batch, and the runtime where one protocol has several."""
    title = TITLES.get(point.protocol, point.protocol)
    if len({other.runtime for other in at if other.protocol == point.protocol}) > 1:
        title += f" ({point.runtime})"
    return f"{title}, batch {point.batch}"


def _notes(profile: pd.DataFrame, headers: list[str], settings: Report) -> Iterator[str]:
    key = ["protocol", "runtime", *measured.PLACE, "model", "layout"]
    counts = profile[profile["note"] == ""].dropna(subset=[RATE]).groupby(key).size()
    many, upto = str(counts.max()), "up to " * (counts.nunique() > 1)
    context = "Context: prompt (image included) + generated tokens."
    if "Generated tokens" in headers:
        context = f"The prompt has {profile['prompt_tokens'].iloc[0]:,} tokens, image included."
    yield (
        f"Medians of {upto}{many} repeat{'s' * (many != '1')}; in brackets the smallest and the largest, of a "
        f"ratio what these allow at most. {context}"
    )
    if "Layers replaced" not in headers and (names := layouts(profile)):
        replaced = ", ".join(f"{name} {settings.replaced(name)}" for name in names)
        yield f"Layers replaced by Mamba-2, of {settings.depth}: {replaced}."
    protocols = set(profile["protocol"])
    text = "Decoding is the rate at that context, not an average over the run. "
    if PAPER not in protocols:
        text += "Teacher and hybrids run through the same code, so that a difference is one of the architecture. "
    yield (
        f"{text}Memory is what the allocator had given out at most, weights included; 1 MB is 1,000,000 bytes"
        f"{' and 1 GB 1,000 MB' * ('Peak memory, GB' in headers)}."
    )
    if PAPER in protocols:
        own = profile[(profile["protocol"] == PAPER) & (profile["model"] == "student")]["runtime"]
        named = f" ({', '.join(sorted(set(own)))})" if len(own) else ""
        yield (
            f"{TITLES['same_runtime']}: a difference is one of the architecture. {TITLES[PAPER]}: the teacher by "
            "transformers' generate with the implementation of attention that is named, hybrids by it with "
            f"this project's own step{named}, so that a difference is one of the runtimes too. There, all are "
            "held against the teacher's fastest and its leanest row, in bold."
        )
    if "Decoding, % of the limit" in headers:
        yield (
            "Limit: the rate at which weights and cache could be read once a token, at the bandwidth that copying "
            "memory reaches on this device."
        )
    if "Memory, % of the prediction" in headers:
        yield "Prediction: computed from the architecture (docs/profiling.md)."
    if profile["beyond_positions"].any():
        yield (
            f"{BEYOND} Longer than what the model is made for: its answers would be worth nothing, its speed and "
            "memory are what they would be."
        )
    if check := _check(profile):
        yield check
    for (runtime, note), _ in profile[profile["note"] != ""].groupby(["runtime", "note"]):
        yield f"Not run: {runtime} ({note})."
    if "device" in profile and (devices := sorted(set(profile["device"].astype(str)) - {""})):
        yield f"Device: {', '.join(devices)}."


def _check(profile: pd.DataFrame) -> str:
    """How far rates at contexts that were truly generated are from those at contexts that were filled."""
    rows = profile.dropna(subset=["generated_decode_tokens_per_s", RATE])
    if rows.empty:
        return ""
    tokens = ", ".join(f"{int(value):,}" for value in sorted(set(rows["generated_tokens"])))
    text = (
        f"Contexts are filled with random numbers. At {tokens} generated tokens they were also generated one by "
        f"one, by transformers' generate with all its bookkeeping: rates then differ by {_off(rows, rows)} from "
        "those at filled ones without it"
    )
    # Where filled contexts went through generate too, the bookkeeping is in both.
    both = profile[profile["runtime"].isin(set(rows["runtime"])) & (profile["protocol"] == PAPER)]
    if not both.dropna(subset=[RATE]).empty:
        text += f", and by {_off(rows, both)} from those with it"
    return text + "."


def _off(generated: pd.DataFrame, filled: pd.DataFrame) -> str:
    """By how much rates of truly generated contexts differ from those of filled ones."""
    place = ["layout", "batch", "prompt_tokens", "generated_tokens"]
    rates = [
        frame.groupby(place)[name].median()
        for frame, name in ((generated, "generated_decode_tokens_per_s"), (filled, RATE))
    ]
    ratios = 100 * (rates[0] / rates[1] - 1).dropna()
    return f"{ratios.min():+.1f} to {ratios.max():+.1f} %".replace("-", "−")


def _source(compared: bool, settings: Report) -> str:
    text = (
        f"The paper claims up to {published.SPEEDUP} times the teacher's tokens per second and "
        f"{100 * published.MEMORY_SAVING:g} % less memory (50 % of the layers, 16k generated tokens)"
    )
    if compared:
        text += f"; columns marked {published.MARK} are its Figure 1 at the same number of generated tokens"
    if not settings.at_paper_scale:
        text += ", for TinyLLaVA-Phi-2-SigLIP-3.1B on other hardware, so that sizes do not compare"
    return text + "."
