"""The rules by which the claims about speed and memory hold or not, for a model of the paper's own size.

Each claim is judged twice. In protocol `paper` every model has a runtime of its own, as had those that the paper
compares. In protocol `same_runtime` all have one, and what is left is the architecture's. Of a gap of R times in
the first protocol and R_same times in the second, the share log R_same / log R is the architecture's and the rest
the runtimes'. Bounds of a ratio are what the extremes of the repeats allow.
"""

from __future__ import annotations

import math

from matvlm.profiling.points import PAPER, SAME
from matvlm.report import published
from matvlm.report.evidence import Claim, Evidence, NotRun
from matvlm.report.measured import RATES, Point, Spread, best_runtime, points_of, ratio, spread_at
from matvlm.report.speed_verdicts import (
    MEMORY,
    RATE,
    filled,
    gains,
    longest_of,
    ran_out,
    share,
    times,
    without_spread,
)

WHERE = {
    PAPER: "as the paper measured, each in a runtime of its own",
    SAME: "in the same runtime, so by the architecture alone",
}
READ_AT, SAVED_AT = 1024, 16384
"""Generated tokens at which the paper's speed and memory are read."""


def speed(evidence: Evidence, start: Claim, protocol: str) -> Claim:
    """The base layout decodes at least 3.6 times as fast as the teacher at some context, in the smallest batch.
    Where nothing was repeated, nothing is shown."""
    layout = evidence.settings.base.layout
    every = _with_bounds(gains(evidence, protocol, layout, RATE))
    smallest = min(point.batch for point in every)
    ratios = {point: found for point, found in every.items() if point.batch == smallest}
    highest, longest = _highest(ratios), longest_of(ratios)
    detail = f"Base layout {layout} against the teacher, {WHERE[protocol]}: at best {times(ratios[highest])}"
    detail += f" at {highest} ({_runtimes(evidence, highest, layout, RATE)})"
    detail += "".join(
        f"; {times(found)} at {point}"
        for point, found in ratios.items()
        if point != highest and (point.generated_tokens == READ_AT or point == longest)
    )
    if larger := {point: found for point, found in every.items() if point.batch != smallest}:
        detail += f"; in larger batches at best {times(larger[_highest(larger)])} at {_highest(larger)}"
    detail += f". {_published_speed(layout)}{_parts(evidence, highest, layout, RATE)}"
    detail += ran_out(evidence, protocol, layout)
    tested = f"{layout} decodes at least {published.SPEEDUP} times as fast as the teacher, {WHERE[protocol]}"
    repeated = any(found.repeats > 1 for found in every.values())
    if repeated and ratios[highest].repeats == 1:
        detail += " Measured once there, it has the widest relative bounds of what was repeated."
    claim = filled(start, ratios[highest], 1, published.SPEEDUP, tested, detail)
    return claim if repeated else without_spread(claim)


def memory(evidence: Evidence, start: Claim, protocol: str, layout: str, bound: float) -> Claim:
    """A hybrid saves at least the share ``bound`` of the teacher's peak memory at 16k generated tokens, in the
    smallest batch; at the longest context where that was not measured."""
    if not (evidence.profile["layout"] == layout).any():
        raise NotRun(f"profile.layouts of this preset lacks {layout}")
    savings = gains(evidence, protocol, layout, MEMORY)
    wanted = [point for point in savings if point.generated_tokens == SAVED_AT]
    at = min(wanted, key=lambda point: point.batch) if wanted else longest_of(savings)
    mine, teacher = (spread_at(evidence.profile, at, subject, MEMORY) for subject in (layout, None))
    detail = (
        f"{layout} saves {share(savings[at])} of the teacher's peak memory, {WHERE[protocol]}: "
        f"{mine.median / 1e9:.2f} against {teacher.median / 1e9:.2f} GB at {at}"
        f" ({_runtimes(evidence, at, layout, MEMORY)}). {_published_memory(layout, at)}"
    )
    detail += _parts(evidence, at, layout, MEMORY) + ran_out(evidence, protocol, layout)
    tested = f"{layout} saves at least {100 * bound:.3g} % of the teacher's peak memory, {WHERE[protocol]}"
    return filled(start, savings[at], 100, bound, tested, detail)


def _with_bounds(found: dict[Point, Spread]) -> dict[Point, Spread]:
    """What was measured once gets the widest relative bounds of what was measured more often."""
    repeated = [each for each in found.values() if each.repeats > 1]
    widest = max((max(each.high / each.median, each.median / each.low) for each in repeated), default=1.0)
    return {
        point: each if each.repeats > 1 else Spread(each.median, each.median / widest, each.median * widest, 1)
        for point, each in found.items()
    }


def _highest(found: dict[Point, Spread]) -> Point:
    return max(found, key=lambda point: found[point].median)


def _runtimes(evidence: Evidence, point: Point, layout: str, column: str) -> str:
    """Who ran in what."""
    mine, teacher = (best_runtime(evidence.profile, point, subject, column) for subject in (layout, None))
    return f"both {mine}" if mine == teacher else f"{layout}: {mine}, teacher: {teacher}"


def _published_speed(layout: str) -> str:
    text = f"The paper claims up to {published.SPEEDUP} times"
    if layout in published.LAYOUTS:
        row = published.TOKENS_PER_S[READ_AT]
        mine = row[published.LAYOUTS.index(layout)]
        text += f"; its figure shows {mine:g} against {row[0]:g} tokens/s at {READ_AT:,} generated tokens"
    return f"{text}. "


def _published_memory(layout: str, at: Point) -> str:
    row = published.MEMORY_GB.get(at.generated_tokens)
    if row is None or row[0] is None or layout not in published.LAYOUTS:
        return ""
    mine = row[published.LAYOUTS.index(layout)]
    return f"The paper's figure shows {mine:g} against {row[0]:g} GB there. "


def _parts(evidence: Evidence, at: Point, layout: str, column: str) -> str:
    """What part of the gap in protocol `paper` at a point is the architecture's and what the runtimes', as far as
    both protocols were measured there."""
    found = {}
    for protocol in (PAPER, SAME):
        same_place = (point for point in points_of(evidence.profile, protocol) if point.place == at.place)
        found[protocol] = next((_factor(evidence, point, layout, column) for point in same_place), None)
    total, same = found[PAPER], found[SAME]
    if total is None or same is None:
        return "The other protocol was not measured there, so that the gap cannot be parted."
    shares = ("", "")
    if total > 1:
        part = 100 * math.log(same) / math.log(total)
        shares = (f" ({part:z.0f} % of the gap's logarithm)", f" ({100 - part:z.0f} %)")
    return (
        f"Of the gap of {total:.2f} times there between models in runtimes of their own, the architecture makes "
        f"{same:.2f} times{shares[0]} and the runtimes {total / same:.2f} times{shares[1]}."
    )


def _factor(evidence: Evidence, point: Point, layout: str, column: str) -> float | None:
    """How many times as good as the teacher a hybrid is."""
    pair = [spread_at(evidence.profile, point, subject, column) for subject in (layout, None)]
    found = ratio(*pair) if column in RATES else ratio(*reversed(pair))
    return found and found.median
