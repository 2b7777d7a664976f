"""What a training does where numbers or memory run out, and weights in bfloat16."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training_loop import ROWS, SETTINGS, Regression, interrupted, run, same_weights

from matvlm.config import Distillation, Optimisation
from matvlm.errors import UserError
from matvlm.training.memory import advice, room
from matvlm.training.order import Order


def test_the_micro_batch_whose_loss_is_not_finite_is_named(tmp_path):
    task = Regression()
    task.y[7] = math.nan
    batch = next(step for step in range(10) if 7 in Order(np.arange(ROWS), 4, 0)(step))
    rows = Order(np.arange(ROWS), 4, 0)(batch)
    pair = next(part for part in (rows[:2], rows[2:]) if 7 in part)
    with pytest.raises(UserError, match=rf"loss nan .* at step {batch + 1}, rows {pair[0]}, {pair[1]};"):
        run(tmp_path, task, micro_batch_size=2, log_every=100)


@pytest.mark.parametrize("at", [0, 4])
def test_a_gpu_without_room_is_one_line_and_loses_no_step(tmp_path, at):
    expected, whole = run(tmp_path / "whole", micro_batch_size=2)
    changes = {"save_every": 100, "micro_batch_size": 2}
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        run(tmp_path / "state", Regression(full=at), **changes)
    for word in (f"regression: out of GPU memory at step {at + 1}", "micro_batch_size: 1 (now 2) takes half"):
        assert word in str(caught.value)
    assert (f"the state to resume from is in {tmp_path / 'state'}" in str(caught.value)) == bool(at)
    assert sorted(path.name for path in tmp_path.glob("state/*")) == ([f"step-{at:08d}"] if at else [])
    rows, resumed = run(tmp_path / "state", **changes)
    assert rows == expected
    assert same_weights(resumed, whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batch_size": 8}, ["micro_batch_size: 4 (now 8) takes half", "precision: bfloat16"]),
        ({"batch_size": 9, "micro_batch_size": 9}, ["micro_batch_size: 3 (now 9) takes less than half"]),
        ({"micro_batch_size": 1, "precision": "bfloat16"}, ["use a larger GPU"]),
        (
            {"kind": Distillation, "micro_batch_size": 1, "precision": "bfloat16"},
            ["gradient_checkpointing: true", "head_chunk: 512 (now 1024)"],
        ),
    ],
)
def test_what_is_said_of_memory_fits_the_settings(changes, words):
    changes = dict(changes)
    kind = changes.pop("kind", Optimisation)
    settings = kind(**SETTINGS | {"batch_size": 8} | changes)
    with pytest.raises(UserError, match=r"^run: out of GPU memory: ") as caught, room("run", settings):
        raise torch.OutOfMemoryError
    assert all(word in str(caught.value) for word in words)
    if settings.micro_batch_size == 1:
        assert "micro_batch_size:" not in str(caught.value)


def test_several_processes_are_told_that_they_can_share(monkeypatch):
    settings = Distillation(**SETTINGS)
    assert "shard_frozen" not in advice(settings)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "shard_frozen: true leaves each process about 1/4 of the frozen weights" in advice(settings)
    assert "shard_frozen" not in advice(settings.model_copy(update={"shard_frozen": True}))


def test_bfloat16_weights_are_trained_by_float32_copies(tmp_path, monkeypatch):
    """Steps far smaller than bfloat16 resolves add up, and a resumed run has lost none of them."""
    tiny = {"learning_rate": 1e-5, "warmup_steps": 0, "decay_steps": 0, "steps": 40, "weight_decay": 0.0}
    fixed = tiny | {"precision": "bfloat16", "micro_batch_size": 2}
    before = Regression(dtype=torch.bfloat16).model[0].weight.detach().clone()
    expected, whole = run(tmp_path / "whole", Regression(dtype=torch.bfloat16), **fixed)
    copies = load_file(tmp_path / "whole" / "step-00000040" / "weights.safetensors")
    assert {tensor.dtype for tensor in copies.values()} == {torch.float32}
    moved = (copies["0.weight"] - before.float()).abs()
    assert 5e-5 < float(moved.max()) < 5e-4  # some 40 steps of 1e-5; a bfloat16 of 0.5 moves by 2e-3 or not at all
    for name, weight in whole.model.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, copies[name].bfloat16())
        assert weight.grad is None
    interrupted(tmp_path / "state", monkeypatch, 25, task=Regression(dtype=torch.bfloat16), **fixed)
    rows, resumed = run(tmp_path / "state", Regression(dtype=torch.bfloat16), **fixed)
    assert rows == expected
    assert same_weights(resumed, whole)
