"""Resumable state of a training run: trained weights and optimizer as safetensors, the rest as JSON.

A checkpoint is a folder ``step-00000040`` that is written aside and renamed. Its ``state.json`` holds the
hash of every other file, so that one cut short by a crash is recognised, named and passed over.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from matvlm.files import written_aside
from matvlm.provenance import file_hash

KEPT = 2
"""Checkpoints kept of a run: the newest, and one before it."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """What a resumed run needs beside tensors. ``log`` is the text of log.csv so far."""

    step: int
    tokens: int
    seconds: float
    scheduler: dict
    log: str


def tensors(weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint of ``weights`` (by name) holds of them and of the AdamW state that belongs to them: the
    tensors themselves, by file and name."""
    moments = {
        f"{name}/{key}": optimizer.state[weight][key].detach()
        for name, weight in weights.items()
        for key in MOMENTS
        if weight in optimizer.state
    }
    return {"weights": {name: weight.detach() for name, weight in weights.items()}, "optimizer": moments}


def write(folder: Path, progress: Progress, found: dict[str, dict[str, Tensor]]) -> None:
    """Write a checkpoint, of tensors on the CPU as `tensors` names them, and remove those that are too old.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; what was there stays.
    """
    with written_aside(folder / f"step-{progress.step:08d}") as aside:
        for name, values in found.items():
            save_file(values, aside / f"{name}.safetensors")
        hashes = {path.name: file_hash(path) for path in sorted(aside.iterdir())}
        state = {"files": hashes, "progress": vars(progress)}
        (aside / "state.json").write_text(json.dumps(state))
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def clear(folder: Path) -> None:
    """Remove what a process that was killed had not finished writing."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def load_newest(
    folder: Path, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Fill ``weights`` and ``optimizer`` from the newest checkpoint that is whole and fits them; none if there is
    none.

    One that is cut short, altered or of another model is named on stderr and passed over.
    """
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            progress, stored, moments = _read(candidate, weights)
        except (OSError, ValueError, SafetensorError) as error:
            print(f"warning: {candidate}: not whole ({error}); looking for the one before", file=sys.stderr)
            continue
        _fill(stored, moments, weights, optimizer)
        return progress
    if any(folder.glob("step-*")):
        print(f"warning: {folder}: no checkpoint is whole; starting from the beginning", file=sys.stderr)
    return None


def _read(folder: Path, weights: dict[str, nn.Parameter]) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
    """Progress, weights and moments of a checkpoint.

    Raises:
        OSError, ValueError, SafetensorError: it is not whole, or does not fit ``weights``.
    """
    state = json.loads((folder / "state.json").read_text())
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in ("files", "progress")):
        raise ValueError("state.json lacks files or progress")
    if broken := [name for name, digest in state["files"].items() if file_hash(folder / name) != digest]:
        raise ValueError(", ".join(broken))
    try:
        progress = Progress(**state["progress"])
    except TypeError:
        raise ValueError("state.json: progress lacks something") from None
    kinds = {"step": int, "tokens": int, "seconds": float | int, "scheduler": dict, "log": str}
    if wrong := [name for name, kind in kinds.items() if not isinstance(getattr(progress, name), kind)]:
        raise ValueError(f"state.json: progress.{wrong[0]} is not as written")
    stored, moments = (load_file(folder / f"{name}.safetensors") for name in ("weights", "optimizer"))
    if difference := sorted(stored.keys() ^ weights.keys()):
        raise ValueError(f"weights do not match the model: {', '.join(difference[:5])}")
    for name, weight in weights.items():
        found = [stored[name]]
        if f"{name}/step" in moments:
            if missing := [key for key in MOMENTS if f"{name}/{key}" not in moments]:
                raise ValueError(f"optimizer lacks {name}/{missing[0]}")
            found += [moments[f"{name}/{key}"] for key in MOMENTS if key != "step"]
        if any(tensor.shape != weight.shape for tensor in found):
            raise ValueError(f"weights do not match the model: {name} has another shape")
    return progress, stored, moments


def _fill(
    stored: dict[str, Tensor],
    moments: dict[str, Tensor],
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    for name, weight in weights.items():
        with torch.no_grad():
            weight.copy_(stored[name])
        if f"{name}/step" not in moments:  # never had a gradient, as the connector where only layers are compared
            continue
        state: dict[str, Tensor] = {key: moments[f"{name}/{key}"] for key in MOMENTS}
        # Fused AdamW keeps its step counter on the weight's device, the plain one on the CPU.
        optimizer.state[weight] = {
            key: value.clone() if key == "step" and not _fused(optimizer) else value.to(weight.device)
            for key, value in state.items()
        }


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused"))
