"""The rules by which the claims about speed and memory hold or not.

Teacher and hybrid are compared in the same runtime (protocol `same_runtime`). Bounds of a ratio are what the
extremes of the repeats allow. Sizes are held against the paper's only at the paper's scale. Below it the verdict
is about the direction at the longest context that both ran: the wrong one fails the claim, the right one alone
shows no size, and the detail says what became of that.
"""

from __future__ import annotations

import math
from dataclasses import replace

from matvlm.report import published
from matvlm.report.evidence import HOLDS, NOT_SHOWN, Claim, Evidence, NotRun, judge
from matvlm.report.measured import Point, Spread, points, ratio, rows_at, saving, spread

PROTOCOL = "same_runtime"
HALF = "even-50"
"""Layout of which the paper's 27.5 % are."""
PUBLISHED_TOKENS = 16384
"""Generated tokens at which the paper's 27.5 % are read."""


def speed(evidence: Evidence, start: Claim) -> Claim:
    """Below the paper's scale: the base layout decodes faster than the teacher at the longest context. At the
    paper's scale: its highest ratio to the teacher at any context reaches 3.6. One repeat shows nothing."""
    layout = evidence.settings.base.layout
    ratios = _against_teacher(evidence, layout, "decode_tokens_per_s")
    highest = max(ratios, key=lambda point: ratios[point].median)
    longest = _longest(ratios)
    detail = (
        f"Base layout {layout} against the teacher in the same runtime: {_times(ratios[longest])} at {longest}"
    )
    if highest != longest:
        detail += f"; highest {_times(ratios[highest])} at {highest}"
    reached = ratios[highest].median >= published.SPEEDUP
    detail += f". {published.SPEEDUP} times is {'reached' if reached else 'not reached'} at any measured context."
    if evidence.settings.at_paper_scale:
        bound, found = published.SPEEDUP, ratios[highest]
        tested = f"{layout} decodes at least {bound} times as fast as the teacher at some context"
    else:
        bound, found = 1.0, ratios[longest]
        tested = f"{layout} decodes faster than the teacher at the longest context (direction only)"
    detail += _ran_out(evidence, layout)
    claim = _filled(start, found, 1, bound, tested, detail)
    if found.repeats > 1:
        return claim if evidence.settings.at_paper_scale else _direction_only(claim, reached)
    detail += " One repeat has no spread, so nothing is shown."
    return replace(claim, low=math.nan, high=math.nan, over="none", verdict=NOT_SHOWN, detail=detail)


def memory(evidence: Evidence, start: Claim) -> Claim:
    """Below the paper's scale: even-50 (the base layout where that was not measured) needs less peak memory than
    the teacher at the longest context. At the paper's scale: it saves at least 27.5 %, at 16k generated tokens
    where they were measured. The allocator's peak is nearly the same in every run, so one repeat will do."""
    profile, base = evidence.profile, evidence.settings.base.layout
    layout = HALF if (profile["layout"] == HALF).any() else base
    savings = _against_teacher(evidence, layout, "peak_memory_bytes")
    at = _longest(savings)
    if evidence.settings.at_paper_scale:
        at = next((point for point in savings if point.generated_tokens == PUBLISHED_TOKENS), at)
    found = savings[at]
    detail = f"{layout} saves {_share(found)} of the teacher's peak memory at {at}"
    if layout != base and (of_base := _saving_of_base(evidence, base, at)):
        detail += f"; the base layout {base} saves {_share(of_base)} there"
    size = 100 * published.MEMORY_SAVING
    reached = found.median >= published.MEMORY_SAVING
    detail += f". {size:g} % is {'reached' if reached else 'not reached'}."
    if evidence.settings.at_paper_scale:
        bound, tested = published.MEMORY_SAVING, f"{layout} saves at least {size:g} % of peak memory"
    else:
        bound, tested = 0.0, f"{layout} needs less peak memory at the longest context (direction only)"
        detail += " How much is saved depends on the share of the cache in all memory, so on model and context."
    detail += _ran_out(evidence, layout)
    claim = _filled(start, found, 100, bound, tested, detail)
    return claim if evidence.settings.at_paper_scale else _direction_only(claim, reached)


def _direction_only(claim: Claim, reached: bool) -> Claim:
    """A claim of a size, of which a small model can show the direction alone."""
    if claim.verdict != HOLDS or reached:
        return claim
    text = " The direction agrees; the size was claimed of another model and can only be shown with that."
    return replace(claim, verdict=NOT_SHOWN, detail=claim.detail + text)


def _against_teacher(evidence: Evidence, layout: str, column: str) -> dict[Point, Spread]:
    """Ratio of a column to the teacher's at each point that both ran; of memory the saving.

    Raises:
        NotRun: there is no such point.
    """
    profile = evidence.profile
    compare = saving if column == "peak_memory_bytes" else ratio
    found = {}
    for point in points(profile[profile["protocol"] == PROTOCOL]):
        pair = (spread(rows_at(profile, point, subject), column) for subject in (layout, None))
        if compared := compare(*pair):
            found[point] = compared
    if not found:
        raise NotRun(f"profile.csv has no point of protocol {PROTOCOL} that both the teacher and {layout} ran")
    return found


def _saving_of_base(evidence: Evidence, base: str, at: Point) -> Spread | None:
    pair = (spread(rows_at(evidence.profile, at, subject), "peak_memory_bytes") for subject in (base, None))
    return saving(*pair)


def _longest(found: dict[Point, Spread]) -> Point:
    """The longest context; of several batch sizes the smallest."""
    return max(found, key=lambda point: (point.context, -point.batch))


def _ran_out(evidence: Evidence, layout: str) -> str:
    """A sentence on the contexts at which the teacher ran out of memory and the hybrid did not."""
    contexts = []
    for point in points(evidence.profile[evidence.profile["protocol"] == PROTOCOL]):
        teacher = rows_at(evidence.profile, point, None)
        runs = spread(rows_at(evidence.profile, point, layout), "decode_tokens_per_s") is not None
        if not teacher.empty and spread(teacher, "decode_tokens_per_s") is None and runs:
            contexts.append(str(point))
    return f" The teacher ran out of memory at {', '.join(contexts)}, where {layout} ran." if contexts else ""


def _filled(start: Claim, found: Spread, scale: float, bound: float, tested: str, detail: str) -> Claim:
    return replace(
        start,
        tested=tested,
        measured=scale * found.median,
        low=scale * found.low,
        high=scale * found.high,
        over="repeats",
        verdict=judge(found.low, found.high, bound),
        detail=detail,
    )


def _times(found: Spread) -> str:
    return f"{found.median:.2f} times [{found.low:.2f}, {found.high:.2f}]"


def _share(found: Spread) -> str:
    bounds = "" if found.low == found.high else f" [{100 * found.low:z.1f}, {100 * found.high:z.1f}]"
    return f"{100 * found.median:z.1f} %{bounds}"
