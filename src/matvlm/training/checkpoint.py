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


def save(
    folder: Path, progress: Progress, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint of ``weights`` (by name) and of the AdamW state that belongs to them."""
    moments = {
        f"{name}/{key}": optimizer.state[weight][key].detach().cpu()
        for name, weight in weights.items()
        for key in MOMENTS
        if weight in optimizer.state
    }
    with written_aside(folder / f"step-{progress.step:08d}") as aside:
        save_file(_plain(weights), aside / "weights.safetensors")
        save_file(moments, aside / "optimizer.safetensors")
        hashes = {path.name: file_hash(path) for path in sorted(aside.iterdir())}
        state = {"files": hashes, "progress": vars(progress)}
        (aside / "state.json").write_text(json.dumps(state))
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def load_newest(
    folder: Path, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Fill ``weights`` and ``optimizer`` from the newest whole checkpoint; none if there is none.

    A checkpoint that is cut short or altered is named on stderr and passed over.
    """
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = json.loads((candidate / "state.json").read_text())
            broken = [n for n, digest in state["files"].items() if file_hash(candidate / n) != digest]
        except (OSError, ValueError, KeyError) as error:
            broken = [str(error)]
        if broken:
            print(f"warning: {candidate}: not whole ({', '.join(broken)}); using the one before", file=sys.stderr)
            continue
        _fill(candidate, weights, optimizer)
        return Progress(**state["progress"])
    return None


def _fill(folder: Path, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    stored = load_file(folder / "weights.safetensors")
    moments = load_file(folder / "optimizer.safetensors")
    if stored.keys() != weights.keys():
        difference = sorted(stored.keys() ^ weights.keys())
        raise ValueError(f"{folder}: weights do not match the model: {', '.join(difference[:5])}")
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


def _plain(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
