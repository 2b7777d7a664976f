"""The paper's claims and what each preset found, side by side, from the presets' `claims.csv`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from matvlm.profiling.points import PAPER, SAME
from matvlm.report.claim_rows import Claim, read_claims
from matvlm.report.claims import IN_ONE_RUNTIME, ORDER
from matvlm.report.evidence import NOT_RUN
from matvlm.report.table import NOTHING, Column, Entry, Row, Table

SHOWN = {
    "tiny": "a teacher of two million parameters; all ablations, on a budget kept short so that they differ",
    "tiny-long": "the base cell of tiny alone, trained far longer",
    "smol": "a teacher around SmolLM2-135M-Instruct; all ablations",
    "paper-profile": "the paper's architecture with random weights; speed and memory alone",
}
"""Presets that are compared, in the order of their columns, and what they are. `tiny-long` answers little, but
among that the claim about quality, for which the budget of `tiny` is too short."""
COMMAND = "snakemake compare"
READING = (
    "A claim, as it was tested, holds (✓), does not hold (✗), or is not shown (?), as the interval in brackets "
    "spans the bound, there is none, or a size was claimed of another model; – was not run. Against several "
    "rivals, the comparison that decides is shown. Between models of different size, directions compare and "
    "magnitudes do not."
)
WHERE = {PAPER: "each in a runtime of its own", SAME: "all in the same runtime"}


@dataclass(frozen=True)
class Line:
    """One claim, and each preset's answer; None where the preset was not asked."""

    id: str
    claim: str
    published: str
    answers: dict[str, Claim | None]

    @property
    def ran(self) -> dict[str, Claim]:
        """Answers of the presets whose configuration and data could give one."""
        return {name: claim for name, claim in self.answers.items() if claim and claim.verdict != NOT_RUN}

    @property
    def tested(self) -> dict[str, list[str]]:
        """What was tested, and by which of the presets that ran it; by all that were asked if none did."""
        asked = self.ran or {name: claim for name, claim in self.answers.items() if claim}
        found: dict[str, list[str]] = {}
        for name, claim in asked.items():
            found.setdefault(claim.tested, []).append(name)
        return found

    @property
    def words(self) -> str:
        """What was tested, unless `differences` or the published number say it."""
        return "" if self.published else "; ".join(self.tested)


@dataclass(frozen=True)
class Comparison:
    """Presets in the order of their columns, and a line for each claim."""

    presets: tuple[str, ...]
    lines: tuple[Line, ...]


def present(results: Path) -> list[Path]:
    """The `claims.csv` of those presets in `SHOWN` that have one below ``results``, in that order."""
    return [path for name in SHOWN if (path := results / name / "claims.csv").is_file()]


def compare(files: Mapping[str, Path]) -> Comparison:
    """Bring the claims of several presets together.

    A claim about speed or memory that a small model answers in one runtime stands beside what the paper's own
    model answers in one, not beside what that answers in several.

    Args:
        files: the `claims.csv` of each preset by its name.

    Raises:
        UserError: not a CSV file, or a column is missing.
    """
    ranks = {name: rank for rank, name in enumerate(SHOWN)}
    names = sorted(files, key=lambda name: ranks.get(name, len(ranks)))
    answers = {name: _by_line(read_claims(files[name])) for name in names}
    found = {id: claim for claims in reversed(answers.values()) for id, claim in claims.items()}
    order = [id for id in ORDER if id in found] + [id for id in found if id not in ORDER]
    lines = (
        Line(
            id,
            _words(found[id].claim, id),
            found[id].published,
            {name: of.get(id) for name, of in answers.items()},
        )
        for id in order
    )
    return Comparison(tuple(answers), tuple(lines))


def table(comparison: Comparison) -> Table:
    """The comparison with a column for each preset."""
    columns = [Column(name, numeric=False) for name in ("Claim", "Published", *comparison.presets)]
    rows = [
        Row(
            "claim",
            (
                Entry(line.claim, line.words and f"(tested: {line.words})"),
                Entry(line.published or NOTHING),
                *map(_entry, line.answers.values()),
            ),
        )
        for line in comparison.lines
    ]
    return Table(
        name="claims",
        title="The paper's claims beside what was measured",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(READING, *differences(comparison)),
        command=COMMAND,
    )


def _by_line(claims: list[Claim]) -> Mapping[str, Claim]:
    ids = {claim.id for claim in claims}
    return {
        claim.id if (same := IN_ONE_RUNTIME.get(claim.id)) in ids else same or claim.id: claim for claim in claims
    }


def _words(claim: str, id: str) -> str:
    """The claim, and which of the two ways of measuring the line is about where there are two."""
    if id.endswith("_architecture"):
        return f"{claim}, {WHERE[SAME]}"
    return f"{claim}, {WHERE[PAPER]}" if f"{id}_architecture" in ORDER else claim


def differences(comparison: Comparison) -> Iterator[str]:
    """What each preset tested, of the claims that are sizes of one model and directions of others."""
    for line in comparison.lines:
        if line.id in IN_ONE_RUNTIME.values():
            texts = [f"{text} ({', '.join(names)})" for text, names in line.tested.items() if text]
            if texts:
                yield f"{line.claim}: tested is that {'; that '.join(texts)}."


def _entry(claim: Claim | None) -> Entry:
    if claim is None or claim.verdict == NOT_RUN:
        return Entry()
    return Entry(f"{claim.sign} {claim.verdict}", claim.in_short, bold=True)
