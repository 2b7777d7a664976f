"""The one way to show progress, on a terminal and in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(iterable: Iterable | None = None, title: str = "", **options: Any) -> tqdm:
    """A bar named ``title`` on stderr, drawn often on a terminal and seldom where rules write it to a log; of
    several processes that share a run the first one draws.

    Args:
        options: for `tqdm`, as ``total``.
    """
    return tqdm(
        iterable,
        desc=title,
        mininterval=0.5 if sys.stderr.isatty() else 5,
        disable=os.environ.get("RANK", "0") != "0",
        **options,
    )
