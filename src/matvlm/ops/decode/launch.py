"""Launching a kernel while the one before it ends."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

HOPPER = (9, 0)
"""First compute capability that can."""


def overlapped(batched: Tensor) -> dict[str, bool]:
    """Arguments of a kernel with a flag ``PDL``, which says whether to wait for what came before.

    Args:
        batched: something of the step, (b, …). For several sequences it does not pay: programs that wait keep
            others from running, which was seen to cost 9 % at eight.
    """
    if len(batched) > 1 or not _able(batched.device):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


@cache
def _able(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER
