"""The claims of the paper, each with its number, ours, the interval, a verdict and the command that made it.

`claims.csv` has the columns `COLUMNS`; `claims.md` the same as a table, and a paragraph a claim that says what was
compared. The rules are in `matvlm.report.verdicts`, `matvlm.report.speed_verdicts` and
`matvlm.report.scale_verdicts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from matvlm.files import csv_text, write_text
from matvlm.profiling.points import PAPER, SAME
from matvlm.report import published, scale_verdicts, speed_verdicts, verdicts
from matvlm.report.claim_rows import with_unit
from matvlm.report.evidence import Claim, Evidence, NotRun, answer
from matvlm.report.read import read_eval, read_profile, read_train
from matvlm.report.settings import Report
from matvlm.report.table import Column, Entry, Row, Table
from matvlm.report.writers import escape_markdown, markdown

COLUMNS = (
    *("id", "claim", "published", "measured", "low", "high", "verdict", "command"),
    *("unit", "over", "tested", "detail"),
)
INTRODUCTION = """\
A verdict is about what stands under "tested", and is one of

- **holds**: all of the interval lies on the claim's side;
- **does not hold**: all of it lies on the other side;
- **not shown**: the interval spans the bound, or there is none, or the direction agrees and the claimed size was
  neither reached nor testable with a model that is not the paper's;
- **not run**: this preset's configuration or data cannot answer.

In square brackets: 95 % intervals, over seeds (Student's t) where several were trained, else over the test
questions; of speed and memory, what the smallest and largest repeats allow. The interval of one seed says nothing
of how another would turn out. "Published" numbers are the paper's.
"""


def _mamba_vlms(evidence: Evidence, start: Claim) -> Claim:
    """Never run: the pipeline has no other model to compare with."""
    raise NotRun("the pipeline trains and evaluates no Mamba-based VLM and no other VLM of the student's size")


def _untrained(evidence: Evidence, start: Claim) -> Claim:
    raise NotRun(
        "this preset measures speed and memory alone; weights are random, and nothing is trained or scored"
    )


def _unmeasured(evidence: Evidence, start: Claim) -> Claim:
    raise NotRun("this preset has no section profile: speed and memory are not measured")


@dataclass(frozen=True)
class _Entry:
    """A claim before it is judged: its id, the target whose numbers it uses, and the rule."""

    id: str
    target: str
    rule: Callable[[Evidence, Claim], Claim]
    start: Claim


REGISTER = (
    _Entry(
        "speed",
        "table_speed",
        speed_verdicts.speed,
        Claim(
            "Up to 3.6 times the teacher's tokens per second",
            "the hybrid decodes faster than the teacher",
            "x",
            published.SPEEDUP,
        ),
    ),
    _Entry(
        "memory",
        "table_speed",
        speed_verdicts.memory,
        Claim(
            "27.5 % less GPU memory (50 % hybrid, 16k generated tokens)",
            "the hybrid needs less peak memory than the teacher",
            "%",
            100 * published.MEMORY_SAVING,
        ),
    ),
    _Entry(
        "quality",
        "table_main",
        verdicts.quality,
        Claim(
            "Competitive with the teacher; better than it on POPE and MMMU, second on TextVQA",
            f"the base student keeps {100 * (1 - verdicts.MARGIN):g} % of the teacher's mean score",
            "% of the teacher's score",
        ),
    ),
    _Entry(
        "mamba_vlms",
        "claims",
        _mamba_vlms,
        Claim("Better than Mamba-based VLMs and VLMs of its size", "the student scores above each of them"),
    ),
    _Entry(
        "layout",
        "table_layouts",
        verdicts.layout,
        Claim(
            "Mamba-2 layers spread evenly beat front, middle and end placements",
            "even scores above each of front, middle and end at the same ratio",
            "points",
        ),
    ),
    _Entry(
        "losses",
        "table_losses",
        verdicts.losses,
        Claim(
            "L_prob, L_layer and L_ce together transfer best",
            "the three together score above each smaller combination",
            "points",
        ),
    ),
    _Entry(
        "distillation",
        "table_losses",
        verdicts.distillation,
        Claim(
            "Distilling beats training on the answers alone",
            "L_prob, L_layer and L_ce together score above L_ce alone",
            "points",
        ),
    ),
    _Entry(
        "divergence",
        "table_divergences",
        verdicts.divergence,
        Claim(
            "Which divergence serves L_prob best is studied; the release uses kl",
            "kl scores above each other divergence",
            "points",
        ),
    ),
    _Entry(
        "init",
        "table_inits",
        verdicts.init,
        Claim(
            "Initialising Mamba-2 from attention speeds up convergence, against random initialisation",
            "attention takes fewer training tokens than random to a fixed validation KL",
            "x",
        ),
    ),
    _Entry(
        "ratio",
        "table_ratios",
        verdicts.ratio,
        Claim(
            "12.5, 25 and 50 % of the layers replaced; 25 % is the released model",
            f"25 % keeps {100 * (1 - verdicts.MARGIN):g} % of the mean score of 12.5 %",
            "% of the score of 12.5 %",
        ),
    ),
)


SPEED, MEMORY = (entry.start for entry in REGISTER[:2])
QUARTER = published.memory_saved("even-25", scale_verdicts.SAVED_AT)
QUARTER_MEMORY = replace(
    MEMORY,
    claim="About 20 % less GPU memory (25 % hybrid, 16k generated tokens; read from Figure 1)",
    published=100 * QUARTER,
)
AT_PAPER_SCALE = tuple(
    _Entry(f"{name}{suffix}", "table_speed", partial(rule, protocol=protocol, **options), start)
    for name, start, rule, options in (
        ("speed", SPEED, scale_verdicts.speed, {}),
        (
            "memory",
            MEMORY,
            scale_verdicts.memory,
            {"layout": speed_verdicts.HALF, "bound": published.MEMORY_SAVING},
        ),
        ("memory_25", QUARTER_MEMORY, scale_verdicts.memory, {"layout": "even-25", "bound": QUARTER}),
    )
    for protocol, suffix in ((PAPER, ""), (SAME, "_architecture"))
)
"""What the claims about speed and memory become for a model of the paper's size."""
ORDER = tuple(entry.id for entry in (*AT_PAPER_SCALE, *REGISTER[2:]))
"""Ids of all claims, in the order in which presets are compared."""
IN_ONE_RUNTIME = {entry.id: f"{entry.id}_architecture" for entry in REGISTER[:2]}
"""Claims that are judged in one runtime unless the model is of the paper's size, and how such a model's judged so
are called."""


def register(settings: Report) -> tuple[_Entry, ...]:
    """The claims that a preset is asked about."""
    return (*AT_PAPER_SCALE, *REGISTER[2:]) if settings.at_paper_scale else REGISTER


def write(settings: Report, scores: Path | None, train: Path | None, profile: Path | None, out: Path) -> None:
    """Judge every claim and write ``out.csv`` and ``out.md``.

    Args:
        scores: `eval.csv`; None where the preset trains nothing.
        train: `train.csv`; likewise.
        profile: `profile.csv`; None where the preset measures no speed.

    Raises:
        UserError: a file that is not what it should be. What it merely lacks makes claims `not run`.
    """
    files = ((read_eval, scores), (read_train, train), (read_profile, profile))
    rows = judged(Evidence(settings, *(read(path) if path else None for read, path in files)))
    write_text(out.with_name(out.name + ".csv"), csv_text(COLUMNS, rows))
    write_text(out.with_name(out.name + ".md"), _page(rows, settings))


def judged(evidence: Evidence) -> list[dict[str, str]]:
    """One row of `claims.csv` for each claim, numbers as text with four significant digits."""
    rows = []
    for entry in register(evidence.settings):
        speed = entry.target == "table_speed"
        needed, otherwise = (evidence.profile, _unmeasured) if speed else (evidence.scores, _untrained)
        answered = needed is not None
        claim = answer(entry.start, entry.rule if answered else otherwise, evidence)
        rows.append(
            {
                "id": entry.id,
                "claim": claim.claim,
                **{name: _number(getattr(claim, name)) for name in ("published", "measured", "low", "high")},
                "verdict": claim.verdict,
                "command": evidence.settings.command(entry.target if answered else "claims"),
                "unit": claim.unit,
                "over": claim.over,
                "tested": claim.tested,
                "detail": claim.detail,
            }
        )
    return rows


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def _page(rows: list[dict[str, str]], settings: Report) -> str:
    names = ("Claim", "Tested", "Published", "Measured", "Verdict")
    table = Table(
        name="claims",
        title=f"Claims of the paper (preset {settings.preset})",
        columns=tuple(Column(name, numeric=name in ("Published", "Measured")) for name in names),
        rows=tuple(Row("claim", tuple(_cells(row))) for row in rows),
        notes=(),
        command=settings.command("claims"),
    )
    parts = [f"# {escape_markdown(table.title)}\n", INTRODUCTION, markdown(table)]
    for row in rows:
        text = f"Tested: {escape_markdown(row['tested'])}. {escape_markdown(row['detail'])}"
        parts.append(f"## {escape_markdown(row['id'])}: {row['verdict']}\n\n{text}\n")
        parts.append(f"Made by `{row['command']}`.\n")
    return "\n".join([*parts, f"Made by `{table.command}`.\n"])


def _cells(row: dict[str, str]) -> list[Entry]:
    low_high = f"[{row['low']}, {row['high']}]" if row["low"] else ""
    return [
        Entry(f"{row['id']}: {row['claim']}"),
        Entry(row["tested"]),
        Entry(with_unit(row["published"], row["unit"])) if row["published"] else Entry(),
        Entry(with_unit(row["measured"], row["unit"]), low_high) if row["measured"] else Entry(),
        Entry(row["verdict"], bold=True),
    ]
