"""The rules by which the claims about speed and memory hold or not, for a model that is not the paper's.

Teacher and hybrid are compared in the same runtime (protocol `same_runtime`). Bounds of a ratio are what the
extremes of the repeats allow. The verdict is about the direction at the longest context that both ran: the wrong
one fails the claim, the right one alone shows no size, and the detail says what became of that. Sizes are held
against the paper's in `matvlm.report.scale_verdicts`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from matvlm.profiling.points import SAME
from matvlm.report import published
from matvlm.report.evidence import HOLDS, NOT_SHOWN, Claim, Evidence, NotRun, judge
from matvlm.report.measured import Point, Spread, against_teacher, points_of, rows_at, spread_at

HALF = "even-50"
"""Layout of which the paper's 27.5 % are."""
RATE, MEMORY = "decode_tokens_per_s", "peak_memory_bytes"


def speed(evidence: Evidence, start: Claim) -> Claim:
    """The base layout decodes faster than the teacher at the longest context. One repeat shows nothing."""
    layout = evidence.settings.base.layout
    ratios = gains(evidence, SAME, layout, RATE)
    highest = max(ratios, key=lambda point: ratios[point].median)
    longest = longest_of(ratios)
    detail = f"Base layout {layout} against the teacher in the same runtime: {times(ratios[longest])} at {longest}"
    if highest != longest:
        detail += f"; highest {times(ratios[highest])} at {highest}"
    reached = ratios[highest].median >= published.SPEEDUP
    detail += f". {published.SPEEDUP} times is {'reached' if reached else 'not reached'} at any measured context."
    detail += ran_out(evidence, SAME, layout)
    tested = f"{layout} decodes faster than the teacher at the longest context (direction only)"
    claim = filled(start, ratios[longest], 1, 1.0, tested, detail)
    return _direction_only(claim, reached) if ratios[longest].repeats > 1 else without_spread(claim)


def memory(evidence: Evidence, start: Claim) -> Claim:
    """even-50 (the base layout where that was not measured) needs less peak memory than the teacher at the longest
    context. The allocator's peak is nearly the same in every run, so one repeat will do."""
    base = evidence.settings.base.layout
    layout = HALF if (evidence.profile["layout"] == HALF).any() else base
    savings = gains(evidence, SAME, layout, MEMORY)
    at = longest_of(savings)
    detail = f"{layout} saves {share(savings[at])} of the teacher's peak memory at {at}"
    if layout != base and (of_base := against_teacher(evidence.profile, at, base, MEMORY)):
        detail += f"; the base layout {base} saves {share(of_base)} there"
    reached = savings[at].median >= published.MEMORY_SAVING
    detail += (
        f". {100 * published.MEMORY_SAVING:g} % is {'reached' if reached else 'not reached'}. How much is saved "
        "depends on the share of the cache in all memory, so on model and context."
    )
    detail += ran_out(evidence, SAME, layout)
    tested = f"{layout} needs less peak memory at the longest context (direction only)"
    return _direction_only(filled(start, savings[at], 100, 0.0, tested, detail), reached)


def _direction_only(claim: Claim, reached: bool) -> Claim:
    """A claim of a size, of which a small model can show the direction alone."""
    if claim.verdict != HOLDS or reached:
        return claim
    text = " The direction agrees; the size was claimed of another model and can only be shown with that."
    return replace(claim, verdict=NOT_SHOWN, detail=claim.detail + text)


def gains(evidence: Evidence, protocol: str, layout: str, column: str) -> dict[Point, Spread]:
    """Ratio of a rate to the teacher's, or the saving of memory, at each point of a protocol that both ran.

    Raises:
        NotRun: there is no such point.
    """
    profile = evidence.profile
    found = {}
    for point in points_of(profile, protocol):
        if compared := against_teacher(profile, point, layout, column):
            found[point] = compared
    if not found:
        raise NotRun(f"profile.csv has no point of protocol {protocol} that both the teacher and {layout} ran")
    return found


def longest_of(found: dict[Point, Spread]) -> Point:
    """The longest context; of several batch sizes the smallest."""
    return max(found, key=lambda point: (point.context, -point.batch))


def ran_out(evidence: Evidence, protocol: str, layout: str) -> str:
    """A sentence on the contexts at which the teacher ran out of memory and the hybrid did not."""
    contexts = []
    for point in points_of(evidence.profile, protocol):
        teacher, runs = (spread_at(evidence.profile, point, subject, RATE) for subject in (None, layout))
        if teacher is None and runs is not None and _was_tried(evidence, point):
            contexts.append(str(point))
    return f" The teacher ran out of memory at {', '.join(contexts)}, where {layout} ran." if contexts else ""


def _was_tried(evidence: Evidence, point: Point) -> bool:
    rows = rows_at(evidence.profile, point, None)
    return bool((rows["note"] == "").any())


def filled(start: Claim, found: Spread, scale: float, bound: float, tested: str, detail: str) -> Claim:
    """The claim with its numbers, and the verdict on "above ``bound``"."""
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


def without_spread(claim: Claim) -> Claim:
    """A claim about a rate that was measured once."""
    detail = f"{claim.detail} One repeat has no spread, so nothing is shown."
    return replace(claim, low=math.nan, high=math.nan, over="none", verdict=NOT_SHOWN, detail=detail)


def times(found: Spread) -> str:
    """A ratio with its bounds."""
    return f"{found.median:.2f} times [{found.low:.2f}, {found.high:.2f}]"


def share(found: Spread) -> str:
    """A saving with its bounds, in per cent."""
    bounds = "" if found.low == found.high else f" [{100 * found.low:z.1f}, {100 * found.high:z.1f}]"
    return f"{100 * found.median:z.1f} %{bounds}"
