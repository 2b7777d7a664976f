"""The order in which models, cells and tasks are listed in every CSV, table and figure."""

from __future__ import annotations

import re
from typing import get_args

from matvlm.config import TASKS, Divergence, Init, LossSet
from matvlm.layouts import PLACEMENTS

_ORDERS: dict[str, tuple[str, ...]] = {
    "model": ("teacher", "student"),
    "init": get_args(Init),
    "loss": get_args(LossSet),
    "divergence": ("none", *get_args(Divergence)),
    "task": TASKS,
    "protocol": ("same_runtime", "paper"),
    "runtime": ("transformers", "fused", "generate-eager", "generate-sdpa", "generate-flash_attention_2"),
}


def key(column: str, value: object) -> tuple:
    """What to sort a value of a column by: known names in their fixed order, then all else, numbers as such."""
    text = "" if value is None else str(value)
    if column == "layout":
        return _layout(text)
    known = _ORDERS.get(column)
    if known is not None:
        return (0, known.index(text), "") if text in known else (-1 if text == "" else 1, 0, text)
    try:
        return (0, float(text), "")
    except ValueError:
        return (-1 if text == "" else 1, 0.0, text)


def _layout(text: str) -> tuple:
    match = re.fullmatch(r"([a-z]+)-(\d+(?:\.\d+)?)", text)
    if text == "" or match is None:
        return (-1 if text == "" else 2, 0.0, text)
    rank = PLACEMENTS.index(match[1]) if match[1] in PLACEMENTS else len(PLACEMENTS)
    return (rank / 10, float(match[2]), match[1])
