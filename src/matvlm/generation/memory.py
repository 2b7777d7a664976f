"""Whether a model fits on a GPU, from the headers of its files, before it is loaded."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import torch

from matvlm.errors import UserError
from matvlm.models.folder import FLOATS

MARGIN = 2 * 2**30
"""Bytes beside the weights: the GPU's own context, activations, and the cache of one conversation, which takes
0.6 GiB in Phi-2's 2,048 positions."""
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of a model folder's weights once they are loaded in ``dtype``.

    Raises:
        UserError: a file that is no safetensors file.
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        for tensor in _header(path).values():
            size = dtype.itemsize if tensor["dtype"] in FLOATS else SIZES.get(tensor["dtype"], 1)
            total += size * math.prod(tensor["shape"])
    return total


def check_memory(folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Nothing on a CPU.

    Raises:
        UserError: the GPU has less memory free than the weights and `MARGIN` take.
    """
    if device.type != "cuda":
        return
    weights, (free, total) = weight_bytes(folder, dtype), torch.cuda.mem_get_info(device)
    if weights + MARGIN > free:
        raise UserError(
            f"--device {device}: {folder} needs {_gib(weights + MARGIN)} of memory ({_gib(weights)} of weights in "
            f"{str(dtype).removeprefix('torch.')} and {_gib(MARGIN)} beside them); {_gib(free)} of the GPU's "
            f"{_gib(total)} are free; --device cpu may do"
        )


def _header(path: Path) -> dict[str, dict]:
    """Each tensor's dtype and shape."""
    try:
        with open(path, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > path.stat().st_size:
                raise ValueError
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
    except (ValueError, struct.error):
        raise UserError(f"{path}: no safetensors file") from None
    return header


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
