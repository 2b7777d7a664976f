"""Rows of a `claims.csv` as pages and comparisons show them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from matvlm.report.evidence import FAILS, HOLDS, NOT_RUN, NOT_SHOWN
from matvlm.report.origins import read_rows

CLAIM_COLUMNS = ("id", "claim", "published", "measured", "low", "high", "verdict", "command")
NUMBERS = CLAIM_COLUMNS[2:6]
VERDICTS = {HOLDS: ("yes", "✓"), FAILS: ("no", "✗"), NOT_SHOWN: ("open", "?"), NOT_RUN: ("none", "–")}
"""Class and sign of each verdict; the word itself is always there, so that colour alone says nothing."""
UNKNOWN = ("none", "•")
SIGNS = {"": "", "x": "×"}
"""Units that are not written out behind a space."""


@dataclass(frozen=True)
class Claim:
    """A row of `claims.csv`; all but ``id`` and ``verdict`` may be empty."""

    id: str
    claim: str
    figures: dict[str, str]
    """Text of the columns `NUMBERS`."""
    verdict: str
    command: str
    unit: str
    over: str
    tested: str
    detail: str

    @property
    def style(self) -> str:
        """Class of its verdict."""
        return VERDICTS.get(self.verdict, UNKNOWN)[0]

    @property
    def sign(self) -> str:
        """Sign of its verdict."""
        return VERDICTS.get(self.verdict, UNKNOWN)[1]

    @property
    def published(self) -> str:
        """The paper's number, with its unit."""
        return with_unit(readable(self.figures["published"]), self.unit)

    @property
    def measured(self) -> str:
        """Our number, with its unit."""
        return with_unit(readable(self.figures["measured"]), self.unit)

    @property
    def interval(self) -> str:
        """Its interval, and what that is over; empty where there is none."""
        low, high = (readable(self.figures[name]) for name in ("low", "high"))
        if not (low and high):
            return ""
        return f"{low} to {high}" + (f", over {self.over}" if self.over else "")

    @property
    def in_short(self) -> str:
        """Our number and its interval in few characters, of the unit its sign; empty where there is no number."""
        if math.isnan(value := self.number("measured")):
            return ""
        places = 1 if abs(value) >= 10 else 2
        text, *ends = (_rounded(self.number(name), places) for name in ("measured", "low", "high"))
        text = with_unit(text, self.unit.split(" ")[0])
        # What an interval adds that is narrower than the digits shown is nothing.
        return text if math.isnan(self.number("low")) or ends[0] == ends[1] else f"{text} [{ends[0]}, {ends[1]}]"

    def number(self, name: str) -> float:
        """One of `NUMBERS`; NaN where there is none."""
        try:
            return float(self.figures[name])
        except ValueError:
            return math.nan


def read_claims(path: Path) -> list[Claim]:
    """Rows of `claims.csv`; a unit and what was tested only where the file has these columns.

    Raises:
        UserError: not a CSV file, or one of `CLAIM_COLUMNS` is missing.
    """
    return [
        Claim(
            figures={name: row[name] or "" for name in NUMBERS},
            **{name: row[name] or "" for name in ("id", "claim", "verdict", "command")},
            **{name: row.get(name) or "" for name in ("unit", "over", "tested", "detail")},
        )
        for row in read_rows(path, CLAIM_COLUMNS)
    ]


def with_unit(text: str, unit: str) -> str:
    """A number with its unit behind it; nothing where there is none."""
    return text and text + SIGNS.get(unit, f" {unit}")


def _rounded(value: float, places: int) -> str:
    """Halves are rounded away from zero: a 5 at the end of four digits was rounded there before."""
    if not math.isfinite(value):
        return ""
    exact = Decimal(f"{value:.10g}").quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    return f"{exact:z}".replace("-", "−")


def readable(text: str) -> str:
    """A number with four significant digits and a true minus sign; any other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return ""
    return (f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}").replace("-", "−")
