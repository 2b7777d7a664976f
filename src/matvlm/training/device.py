"""Which device a step runs on."""

from __future__ import annotations

import os

import torch

from matvlm.errors import UserError
from matvlm.ops.choose import check_choice


def pick_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU; or a torch device by name.

    Where several processes share a run, as LOCAL_RANK says, each has the GPU of its number on its node.

    Raises:
        UserError: a device that is unknown or not there, or kernels that are forced and cannot run on it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; allowed: auto, cpu, cuda, cuda:0, …") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no GPU is available here; use cpu or auto")
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        # A launcher may show each process its own GPU alone, which then is number 0.
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    check_choice(device)
    return device


def pick_training_device(name: str) -> torch.device:
    """As `pick_device`, for what has a backward pass.

    cuDNN's attention is switched off: its backward gave gradients that were not a number for batches whose loss
    was fine (bf16, head size 32, cuDNN of torch 2.11 on an H100). The flash kernel takes its place.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    return pick_device(name)
