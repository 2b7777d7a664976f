"""What a benchmark that measures one preset leaves of its file."""

from __future__ import annotations

import csv
from pathlib import Path


def kept(out: Path, preset: str) -> list[dict[str, str]]:
    """Rows of other presets, which stay."""
    if not out.is_file():
        return []
    with open(out, newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["preset"] != preset]
