"""The rules by which the claims about scores and convergence hold or not: one small function a claim.

Intervals are the 95 % ones of `matvlm.report.statistics`, each for one comparison. To hold against several rivals
a claim must hold against each, which needs no correction; to fail it is enough to fail against one, which chance
brings about the more often the more rivals there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import pandas as pd

from matvlm.config import Divergence, LossSet
from matvlm.errors import UserError
from matvlm.experiments import Cell
from matvlm.report import convergence
from matvlm.report.evidence import FAILS, HOLDS, NOT_SHOWN, Claim, Evidence, NotRun, judge
from matvlm.report.read import rows_of
from matvlm.report.statistics import Estimate, difference, over_seeds, score
from matvlm.report.tables import share_of, teacher_rows

MARGIN = 0.02
"""What a model may lose of another's mean score and still count as keeping it; this project's choice."""
ALL_LOSSES = "prob+layer+ce"


def quality(evidence: Evidence, start: Claim) -> Claim:
    """The base student keeps at least 98 % of the teacher's mean score (`MARGIN`)."""
    try:
        teacher = teacher_rows(evidence.scores)
    except UserError as error:
        raise NotRun(str(error)) from None
    base = evidence.settings.base_cell
    claim = _keeps(start, (f"The base student ({base.path})", evidence.of(base)), ("the teacher", teacher))
    if not evidence.settings.at_paper_scale:
        claim = replace(claim, detail=f"{claim.detail} POPE, MMMU and TextVQA are not part of this preset.")
    log = rows_of(evidence.train, base)
    if log.empty:
        return claim
    budget = f" It was trained on {log['tokens'].max():,.0f} tokens"
    if not evidence.settings.at_paper_scale and len(evidence.settings.cells("losses")) > 1:
        budget += ", as was every cell of the ablations"
    return replace(claim, detail=f"{claim.detail}{budget}.")


def ratio(evidence: Evidence, start: Claim) -> Claim:
    """even-25 keeps at least 98 % of even-12.5's mean score (`MARGIN`). The paper names no order of the ratios;
    what is tested is that the released model gives up little by replacing twice as many layers."""
    cells = evidence.cells("ratios", "layout")
    for layout in ("even-12.5", "even-25"):
        if layout not in cells:
            raise NotRun(f"ablation.ratios of this preset lacks {layout.removeprefix('even-')}")
    few, many = evidence.of(cells["even-12.5"]), evidence.of(cells["even-25"])
    claim = _keeps(start, ("even-25", many), ("even-12.5", few))
    scores = ", ".join(f"{layout} {per_cent(score(evidence.of(cell)))}" for layout, cell in cells.items())
    text = f" Mean scores: {scores}."
    for layout, cell in cells.items():
        if layout not in ("even-12.5", "even-25"):
            gap = difference(evidence.of(cell), few)
            text += f" {layout} minus even-12.5: {in_points(gap)}, {_over(gap)}."
    return replace(claim, detail=claim.detail + text)


def layout(evidence: Evidence, start: Claim) -> Claim:
    """Even placement scores above front, middle and end at the same ratio: the base's, if it is even, else the
    first even one configured."""
    cells = evidence.cells("layouts", "layout")
    even = [name for name in (evidence.settings.base.layout, *cells) if name.startswith("even-") and name in cells]
    if not even:
        raise NotRun("ablation.layouts of this preset has no even layout")
    wanted = [f"{place}-{even[0].removeprefix('even-')}" for place in ("front", "middle", "end")]
    return _beats(evidence, start, even[0], cells, wanted)


def losses(evidence: Evidence, start: Claim) -> Claim:
    """All three losses together score above each of the six smaller combinations."""
    wanted = [name for name in get_args(LossSet) if name != ALL_LOSSES]
    return _beats(evidence, start, ALL_LOSSES, evidence.cells("losses", "loss"), wanted)


def distillation(evidence: Evidence, start: Claim) -> Claim:
    """All three losses together score above the cross-entropy on the answers alone."""
    return _beats(evidence, start, ALL_LOSSES, evidence.cells("losses", "loss"), ["ce"])


def divergence(evidence: Evidence, start: Claim) -> Claim:
    """The release's choice, kl, scores above each other divergence. The paper's own winner is not known here."""
    cells = evidence.cells("divergences", "divergence")
    wanted = [name for name in get_args(Divergence) if name != "kl"]
    return _beats(evidence, start, "kl", cells, wanted)


def init(evidence: Evidence, start: Claim) -> Claim:
    """Started from attention, a student needs fewer tokens to a fixed validation KL than started at random.

    Measured: tokens(random) / tokens(attention), the geometric mean over seeds; the level is that of
    `matvlm.report.convergence`. With several seeds the interval is Student's t on the logarithms, and the bound
    is 1. A single seed has no interval; then the claim holds (does not hold) if the ratio is above (below) 1 and
    the difference of the mean scores after the same number of tokens, with its interval over the test questions,
    is on the same side of zero. All else is not shown.
    """
    cells = evidence.cells("inits", "init")
    for name in convergence.COMPARED:
        if name not in cells:
            raise NotRun(f"ablation.inits of this preset lacks {name}")
    logs = {name: evidence.log_of(cells[name]) for name in convergence.COMPARED}
    limit = convergence.level(evidence.train, evidence.settings)
    runs = {name: convergence.tokens_to(log, limit) for name, log in logs.items()}
    reach = {name: [one.tokens for one in found] for name, found in runs.items()}
    speedup = [slow / fast for fast, slow in zip(reach["attention"], reach["random"], strict=True)]
    logarithm = over_seeds([math.log(value) for value in speedup])
    gap = difference(evidence.of(cells["attention"]), evidence.of(cells["random"]))
    low, high = math.exp(logarithm.low), math.exp(logarithm.high)  # NaN stays NaN
    verdict = judge(low, high, 1.0)
    if len(speedup) == 1:
        holds, fails = speedup[0] > 1 and gap.side > 0, speedup[0] < 1 and gap.side < 0
        verdict = HOLDS if holds else FAILS if fails else NOT_SHOWN
    means = {name: over_seeds(values).mean for name, values in reach.items()}
    detail = (
        f"To a validation KL of {limit:.3g} nats a token, attention took {means['attention']:,.0f} tokens and "
        f"random {means['random']:,.0f}: {math.exp(logarithm.mean):.2f} times as many"
    )
    if len(speedup) > 1:
        detail += f" [{low:.2f}, {high:.2f}], geometric mean over {len(speedup)} seeds"
    else:
        detail += ", one seed, so without interval; the verdict asks the scores to agree"
    for name, found in runs.items():
        if at_once := sum(one.at_once for one in found):
            detail += f"; {name} was below it at the first validation of {at_once} of {len(found)} runs"
            detail += ", of which the first logged step counts"
    detail += f". Mean score after the same training, attention minus random: {in_points(gap)}, {_over(gap)}."
    return replace(
        start,
        measured=math.exp(logarithm.mean),
        low=low,
        high=high,
        over=logarithm.over,
        verdict=verdict,
        detail=detail,
    )


def _keeps(start: Claim, mine: tuple[str, pd.DataFrame], other: tuple[str, pd.DataFrame]) -> Claim:
    """Whether one model's mean score is at least ``1 - MARGIN`` of another's."""
    share = share_of(mine[1], other[1])
    if share is None:
        raise NotRun(f"{other[0]} scores 0, of which there is no share")
    gap = difference(mine[1], other[1])
    detail = (
        f"{mine[0]} scores {per_cent(score(mine[1]))}, {other[0]} {per_cent(score(other[1]))} as the mean "
        f"over tasks; difference {in_points(gap)}, {_over(gap)}: {per_cent(share)} of the score, where "
        f"{100 * (1 - MARGIN):g} % are asked for (a margin set by this project)."
    )
    return replace(
        start,
        measured=100 * share.mean,
        low=100 * share.low,
        high=100 * share.high,
        over=share.over,
        verdict=judge(share.low, share.high, 1 - MARGIN),
        detail=detail,
    )


def _beats(evidence: Evidence, start: Claim, name: str, cells: Mapping[str, Cell], wanted: list[str]) -> Claim:
    """Whether one cell's mean score is above that of each rival.

    The numbers of the row are those of the comparison that decides: if any rival's interval lies below zero, the
    smallest difference of these (does not hold); else, if any spans zero, the smallest of these (not shown);
    else the smallest. Rivals that the claim names and that are not configured leave a claim that would hold not
    shown.
    """
    if name not in cells:
        raise NotRun(f"{name} is not configured for this preset")
    rivals = [rival for rival in wanted if rival in cells]
    if not rivals:
        raise NotRun(f"this preset has none of {', '.join(wanted)} to compare {name} with")
    mine = evidence.of(cells[name])
    gaps = {rival: difference(mine, evidence.of(cells[rival])) for rival in rivals}
    side = min(gap.side for gap in gaps.values())
    tightest = min((rival for rival in gaps if gaps[rival].side == side), key=lambda rival: gaps[rival].mean)
    gap = gaps[tightest]
    verdict = judge(gap.low, gap.high)
    scores = {rival: score(evidence.of(cells[rival])) for rival in (name, *rivals)}
    best = max(scores, key=lambda one: scores[one].mean)
    detail = (
        f"Mean scores: {', '.join(f'{one} {per_cent(scores[one])}' for one in scores)}; the best is {best}. "
        f"{name} minus "
        f"{', minus '.join(f'{rival}: {in_points(gaps[rival])}' for rival in rivals)}, {_over(gap)}."
    )
    if len(rivals) > 1:
        detail += f" The comparison with {tightest} decides."
    if missing := [rival for rival in wanted if rival not in cells]:
        detail += f" Not configured: {', '.join(missing)}."
        verdict = NOT_SHOWN if verdict == HOLDS else verdict
    return replace(
        start,
        measured=100 * gap.mean,
        low=100 * gap.low,
        high=100 * gap.high,
        over=gap.over,
        verdict=verdict,
        detail=detail,
    )


def per_cent(estimate: Estimate) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * estimate.mean:z.1f} %" + _bracket(estimate, "z.1f")


def in_points(estimate: Estimate) -> str:
    """A difference of shares with its interval, in percentage points."""
    return f"{100 * estimate.mean:+.2f} points" + _bracket(estimate, "+.2f")


def _bracket(estimate: Estimate, spec: str) -> str:
    if math.isnan(estimate.low):
        return ""
    return f" [{100 * estimate.low:{spec}}, {100 * estimate.high:{spec}}]"


def _over(estimate: Estimate) -> str:
    return f"over {estimate.n} seeds" if estimate.over == "seeds" else "over the test questions of one seed"
