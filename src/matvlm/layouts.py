"""Which decoder layers of the language model are replaced by Mamba-2 layers.

A layout is written as a word and a ratio in per cent (``even-25``, ``front-12.5``), as ``release-12.5``
(the list that the paper's release uses) or as an explicit list of layer indices (``0,4,8``).
This module knows nothing of torch or of the configuration.
"""

from __future__ import annotations

import math
import re

from matvlm.errors import UserError

PLACEMENTS = ("even", "front", "middle", "end")
RELEASED = {"release-12.5": (0, 6, 12, 18)}
"""Lists of the release for 32 layers that no rule gives; its 25 % and 50 % are ``even``."""
RELEASED_DEPTH = 32

_NAMED = "|".join(name.replace(".", r"\.") for name in RELEASED)
PATTERN = rf"^(({'|'.join(PLACEMENTS)})-[0-9]+(\.[0-9]+)?|{_NAMED}|[0-9]+(,[0-9]+)*)$"
"""What a layout looks like, as a regular expression that JSON schema knows too."""
SYNTAX = (
    f"allowed: {', '.join(p + '-<per cent>' for p in PLACEMENTS)}, {', '.join(RELEASED)}, "
    "or layer indices such as 0,4,8"
)


class LayoutError(UserError):
    """A layout that cannot be read, or that the model's depth does not allow."""


def replaced_count(ratio: float, depth: int) -> int:
    """Number of layers that ``ratio`` per cent of ``depth`` layers gives: ``floor(r L + 0.5)``.

    Raises:
        LayoutError: the ratio gives no layer, or more than there are.
    """
    if not math.isfinite(ratio) or ratio <= 0 or ratio > 100:
        raise LayoutError(f"ratio {ratio:g} % is not in the range above 0 up to 100")
    count = math.floor((ratio * depth + 50) / 100)  # ratio / 100 would round: 29 % of 50 is 14.5
    if count < 1:
        raise LayoutError(f"ratio {ratio:g} % of {depth} layers replaces no layer")
    return count


def canonical(layout: str) -> str:
    """The one spelling of a layout, so that equal ones have equal names: ``even-25.0`` is ``even-25``.

    Raises:
        LayoutError: not a layout at any depth.
    """
    if not re.fullmatch(PATTERN, layout):
        raise LayoutError(f"unknown layout {layout!r}; {SYNTAX}")
    if layout in RELEASED:
        return layout
    if layout[0].isdigit():
        return ",".join(str(index) for index in sorted(int(part) for part in layout.split(",")))
    word, ratio = layout.split("-")
    whole, _, rest = ratio.partition(".")
    rest = rest.rstrip("0")
    return f"{word}-{int(whole)}" + (f".{rest}" if rest else "")


def resolve(layout: str, depth: int) -> list[int]:
    """Layer indices, ascending, that ``layout`` replaces in a model of ``depth`` decoder layers.

    Raises:
        LayoutError: unknown word, ratio out of range, layer out of range, or a repeated layer.
    """
    layout = layout.strip()
    if layout in RELEASED:
        if depth != RELEASED_DEPTH:
            raise LayoutError(f"layout {layout!r} is for {RELEASED_DEPTH} layers; the model has {depth}")
        return list(RELEASED[layout])
    if re.fullmatch(r"\d+(,\d+)*", layout):
        return _explicit([int(part) for part in layout.split(",")], depth)
    match = re.fullmatch(r"([a-z]+)-(\d+(?:\.\d+)?)", layout)
    if match is None or match[1] not in PLACEMENTS:
        raise LayoutError(f"unknown layout {layout!r}; {SYNTAX}")
    count = replaced_count(float(match[2]), depth)
    if match[1] == "even":
        return [i * depth // count for i in range(count)]
    start = {"front": 0, "middle": (depth - count) // 2, "end": depth - count}[match[1]]
    return list(range(start, start + count))


def achieved_ratio(layout: str, depth: int) -> float:
    """Share of layers in per cent that ``layout`` really replaces at ``depth`` layers."""
    return 100 * len(resolve(layout, depth)) / depth


def _explicit(layers: list[int], depth: int) -> list[int]:
    if len(set(layers)) != len(layers):
        raise LayoutError(f"layout {','.join(map(str, layers))} names a layer twice")
    if (highest := max(layers)) >= depth:
        raise LayoutError(f"layer {highest} is out of range; allowed: 0 to {depth - 1}")
    return sorted(layers)
