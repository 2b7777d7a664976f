"""A table as structured cells, and how numbers are put into words; `matvlm.report.writers` writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matvlm.report.measured import Spread
from matvlm.report.statistics import Estimate

NOTHING = "–"
"""Text of a cell for which there is no number."""
SECTION = "section"


@dataclass(frozen=True)
class Column:
    """``numeric`` columns are set flush right. The first column names the row."""

    header: str
    numeric: bool = True


@dataclass(frozen=True)
class Entry:
    """One cell: its value, and the interval or spread beside it."""

    text: str = NOTHING
    spread: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """``kind``: `teacher`, `base`, `student` or `difference`, which writers may set apart, or `section`, whose one
    entry is the title of the rows below it."""

    kind: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    """``name`` as in ``table_<name>``; ``command`` makes the table again."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    command: str

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.entries) != (1 if row.kind == SECTION else len(self.columns)):
                raise ValueError(f"table {self.name}: a row of {len(row.entries)} for {len(self.columns)} columns")

    @property
    def sections(self) -> list[tuple[str, tuple[Row, ...]]]:
        """Title and rows of each section; one without a title where there are none."""
        parts: list[tuple[str, list[Row]]] = [("", [])]
        for row in self.rows:
            if row.kind == SECTION:
                parts.append((row.entries[0].text, []))
            else:
                parts[-1][1].append(row)
        return [(title, tuple(rows)) for title, rows in parts if rows or len(parts) == 1]


def percent(estimate: Estimate | None) -> Entry:
    """A share as per cent with one decimal, ``±`` half of its interval where there is one."""
    if estimate is None or math.isnan(estimate.mean):
        return Entry()
    half = estimate.half_width
    return Entry(f"{100 * estimate.mean:z.1f}", "" if math.isnan(half) else f"± {100 * half:.1f}")


def points(estimate: Estimate | None) -> Entry:
    """A difference of shares in percentage points, with its sign."""
    entry = percent(estimate)
    sign = "+" if estimate is not None and 100 * estimate.mean >= 0.05 else ""
    return Entry(minus(sign + entry.text), entry.spread)


def significant(estimate: Estimate | None) -> Entry:
    """Three significant digits; half of the interval with as many decimals."""
    if estimate is None:
        return Entry()
    places, half = decimals(estimate.mean), estimate.half_width
    text = "" if math.isnan(half) else f"± {half:,.{places}f}"
    return Entry(f"{estimate.mean:z,.{places}f}", text)


def tokens(estimate: Estimate) -> Entry:
    """A number of tokens."""
    half = estimate.half_width
    return Entry(f"{estimate.mean:,.0f}", "" if math.isnan(half) else f"± {half:,.0f}")


def repeats(spread: Spread | None, scale: float = 1) -> Entry:
    """A median with three significant digits and the smallest and largest repeat, where they look different."""
    if spread is None:
        return Entry()
    places = decimals(spread.median * scale)
    text, low, high = (f"{value * scale:z,.{places}f}" for value in (spread.median, spread.low, spread.high))
    return Entry(minus(text), "" if low == high else minus(f"({low} to {high})"))


def decimals(value: float, digits: int = 3) -> int:
    """Decimals that show ``digits`` significant digits of a number, at most eight."""
    if value == 0 or not math.isfinite(value):
        return 0
    value = float(f"{value:.{digits}g}")  # 0.9996 is shown as 1.00
    return min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 8)


def minus(text: str) -> str:
    """Hyphens as minus signs."""
    return text.replace("-", "−")
