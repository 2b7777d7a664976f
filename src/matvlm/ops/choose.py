"""Which implementation the Mamba-2 mixers run on: mamba-ssm's kernels where they can, else the torch reference.

`MATVLM_KERNELS` in the environment forces either: ``torch``, ``mamba_ssm``, or ``auto``, which is the default.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib import metadata
from types import ModuleType

import torch

from matvlm.errors import UserError
from matvlm.ops import torch_path
from matvlm.ops.install import install_command

VARIABLE = "MATVLM_KERNELS"
TORCH, MAMBA_SSM = "torch", "mamba_ssm"
CHOICES = ("auto", TORCH, MAMBA_SSM)
CAPABILITY = (8, 0)
"""Oldest compute capability that the kernels are good for: bfloat16 in Triton needs it."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
log = logging.getLogger(__name__)


@torch.compiler.assume_constant_result
def kernel_path(device: torch.device | str) -> str:
    """``torch`` or ``mamba_ssm``: what mixers on ``device`` run on, as results record it.

    Raises:
        UserError: the environment asks for what is unknown, or for kernels that cannot run here.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        raise UserError(f"{VARIABLE}={wanted}: unknown; allowed: {', '.join(CHOICES)}")
    return _choose(wanted, torch.device(device))


def path_for(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module of operations for inputs like these: `matvlm.ops.torch_path` or `matvlm.ops.mamba_path`.

    The kernels have no float64; there the reference runs.
    """
    if dtype in DTYPES and kernel_path(device) == MAMBA_SSM:
        from matvlm.ops import mamba_path

        return mamba_path
    return torch_path


def check_choice(device: torch.device | str) -> None:
    """Whether what the environment forces, if it forces anything, is there for ``device``.

    Raises:
        UserError: it is unknown, or cannot run here.
    """
    if os.environ.get(VARIABLE, "auto") != "auto":
        kernel_path(device)


@cache
def _choose(wanted: str, device: torch.device) -> str:
    """Decided once for a device, and said once; of a CPU, which has no choice, only to who debugs."""
    if wanted == TORCH or (wanted == "auto" and device.type != "cuda"):
        level = logging.INFO if device.type == "cuda" else logging.DEBUG
        log.log(level, "Mamba-2 layers on %s run on the torch reference", device)
        return TORCH
    problem = _problem(device)
    if problem is None:
        from matvlm.ops import mamba_path

        # Not when it is imported: it asks the GPU for its name, and a process that has is no good for forking.
        mamba_path.keep_choices()
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("mamba-ssm", "causal-conv1d"))
        log.info("Mamba-2 layers on %s run on the kernels of %s", device, versions)
        return MAMBA_SSM
    if wanted == MAMBA_SSM:
        raise UserError(f"{VARIABLE}={MAMBA_SSM}: {problem}")
    log.warning("Mamba-2 layers on %s run on the slower torch reference: %s", device, problem)
    return TORCH


def _problem(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``, with what would help; none if they can."""
    if device.type != "cuda":
        return f"the kernels need a GPU, not {device}"
    if (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        needed, has = (".".join(map(str, version)) for version in (CAPABILITY, found))
        name = torch.cuda.get_device_name(device)
        return f"the kernels need a GPU of compute capability {needed} or later; {name} has {has}"
    try:
        from matvlm.ops import mamba_path  # noqa: F401
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        # A package that is not there, or one compiled for another torch, which fails in many ways.
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{said}; install with: {install_command(torch.__version__, torch.version.cuda)}"
    return None
