"""Which device a step runs on."""

from __future__ import annotations

import fcntl
import os
import tempfile
from functools import cache
from pathlib import Path

import torch

from matvlm.errors import UserError
from matvlm.ops.choose import check_choice


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one, else the CPU; or a torch device by name.

    Where several processes share a run, as LOCAL_RANK says, each has the GPU of its number on its node. Otherwise
    each that leaves the choice takes the next GPU, so that jobs side by side on one machine are spread over all.

    Raises:
        UserError: a device that is unknown or not there, or kernels that are forced and cannot run on it.
    """
    choose = name == "auto"
    if choose:
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
    elif choose and device.type == "cuda" and torch.cuda.device_count() > 1:
        device = torch.device("cuda", _turn() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    check_choice(device)
    return device


def pick_training_device(name: str, deterministic: bool = False) -> torch.device:
    """As `pick_device`, for what has a backward pass; ``deterministic``: by kernels that give the same bits each
    time, where there are such.

    cuDNN's attention is switched off: its backward gave gradients that were not a number for batches whose loss
    was fine (bf16, head size 32, cuDNN of torch 2.11 on an H100). The flash kernel takes its place.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.utils.deterministic.fill_uninitialized_memory = False
    # Only warned of is cumsum, of short rows, which are added up in one order.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    return pick_device(name)


@cache
def _turn() -> int:
    """This process's number among those of the user that have asked on this machine."""
    return next_ticket(Path(tempfile.gettempdir()) / f"matvlm-gpu-{os.getuid()}")


def next_ticket(counter: Path) -> int:
    """0, 1, 2, … of all processes that ask with the same file; any number where it cannot be had at once."""
    try:
        # The folder may be everybody's: a link, and what is another user's, is left alone.
        place = os.open(counter, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        with open(place, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = file.read(20)
            ticket = int(text) if text.isascii() and text.isdigit() else 0
            file.seek(0)
            file.truncate()
            file.write(str(ticket + 1))
    except (OSError, ValueError):
        return os.getpid()
    return ticket
