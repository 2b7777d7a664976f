"""Frozen weights shared out among processes: the same losses, and a part of the weights in each process."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from running import DEVICES, distill, finish, ranks
from safetensors.torch import load_file
from test_distill_run import arguments
from test_distill_trunk import student_of
from test_training_ranks import same_to_rounding
from tiny_models import prompt
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from matvlm.config import Distillation
from matvlm.data.dataset import load_split
from matvlm.data.processor import load_processor
from matvlm.distill import run
from matvlm.distill.shard import check_sharding, frozen_bytes, shard_frozen, share_modules
from matvlm.distill.targets import Online, evaluating
from matvlm.distill.task import DistillTask, Objective
from matvlm.distill.trunk import load_teacher
from matvlm.errors import UserError
from matvlm.models.folder import load_model

SETTINGS = {"steps": 4, "micro_batch_size": 1, "validate_every": 2}
OPTIONS = {"steps": 1, "learning_rate": 0.1, "warmup_steps": 0, "decay_steps": 0, "validation_rows": 2}
ONLINE = {"cache": None, "cache_settings": None}


def sharded(small: Path, out: Path, device: str) -> list[tuple[int, str]]:
    settings = SETTINGS | {"shard_frozen": True, "gradient_checkpointing": True}
    options = {"settings": settings, "device": device} | ONLINE
    return [finish(process) for process in [distill(small, out, environment=v, **options) for v in ranks(2)]]


@pytest.mark.processes
@pytest.mark.parametrize("device", DEVICES)
def test_two_processes_train_the_student_of_one_on_half_the_weights(small, tmp_path, device):
    alone, out = tmp_path / "alone" / "out", tmp_path / "shared" / "out"
    assert run.main(arguments(small, alone, settings=SETTINGS, **ONLINE)) == 0
    ended = sharded(small, out, device)
    assert [status for status, _ in ended] == [0, 0], ended
    same_to_rounding(out, alone)
    before, after = (
        load_file(folder / "model.safetensors") for folder in (small / "init" / "attention-even-50", out)
    )
    assert before.keys() == after.keys()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert not any(".mamba." in name or "multi_modal" in name for name in unchanged)
    assert all(".mamba." in name or "multi_modal" in name for name in before.keys() - unchanged)

    found = [re.search(r"holding ([\d,]+) of ([\d,]+) bytes of frozen weights", error) for _, error in ended]
    held, size = ([int(match[group].replace(",", "")) for match in found] for group in (1, 2))
    assert size[0] == size[1]
    student = student_of(small)
    teacher = load_teacher(small / "teacher", student)
    assert frozen_bytes(student, teacher) == (size[0], size[0])
    apart = [student.get_input_embeddings(), student.lm_head, student.model.vision_tower.embeddings]
    apart += [teacher.model.multi_modal_projector]
    replicated = sum(weight.nbytes for module in apart for weight in module.parameters())
    for part in held:
        assert part == pytest.approx(replicated + (size[0] - replicated) / 2, rel=0.02)
        assert part < 0.7 * size[0]


@pytest.fixture
def group():
    """A group of this process alone, which FSDP2 takes too."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("loss", ["prob+layer+ce", "layer", "ce"])
def test_losses_and_gradients_are_those_of_whole_layers(small, group, recompute, loss):
    results = []
    for sharded in (False, True):
        settings = Distillation(
            **OPTIONS, batch_size=4, micro_batch_size=4, shard_frozen=sharded, gradient_checkpointing=recompute
        )
        student = student_of(small)
        teacher = load_teacher(small / "teacher", student)
        if sharded:
            shard_frozen(student, teacher, torch.device("cpu"))
            frozen = [w for n, w in student.named_parameters() if ".layers." in n and ".mamba." not in n]
            assert all(isinstance(w, DTensor) for w in frozen if w.ndim > 1)
        processor = load_processor(small / "teacher")
        data, val = (load_split(small / "data" / name, processor, 448).vary() for name in ("distill", "val"))
        objective = Objective.of(loss, "kl" if "prob" in loss else "none", settings)
        task = DistillTask(student, data, Online(teacher), objective, (val, Online(teacher)))
        assert task.sharded == sharded
        for _ in range(2):  # a second pass finds the weights as the first did
            student.zero_grad()
            batch = task.batch(np.arange(4), 0)
            value, named = task.losses(batch, task.counts(batch))
            value.backward()
        losses = {name: float(part.detach()) for name, part in named.items()} | task.validate()
        results.append((losses, {n: w.grad for n, w in student.named_parameters() if w.grad is not None}))
    (losses, gradients), (expected, theirs) = results
    assert losses == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name])


def test_one_process_has_nobody_to_share_with(small, tmp_path, capsys):
    assert run.main(arguments(small, tmp_path / "out", settings={"shard_frozen": True}, **ONLINE)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: distill.shard_frozen: true shares the frozen weights out among several processes"
    )


def test_settings_that_cannot_be_shared_out():
    options = OPTIONS | {"shard_frozen": True}
    settings = Distillation(**options, batch_size=6, micro_batch_size=1)
    check_sharding(settings, 2)
    with pytest.raises(UserError, match="batch_size 6 is not a multiple of 4 processes times micro_batch_size 1"):
        check_sharding(settings, 4)
    with pytest.raises(ValueError, match="compile: true does not go with shard_frozen: true"):
        Distillation(**options, batch_size=6, micro_batch_size=1, compile=True)


def test_what_is_shared_is_one_module_and_the_teacher_stays_itself(small):
    student, alone = student_of(small), load_model(small / "teacher")
    teacher = load_teacher(small / "teacher", student)
    share_modules(teacher, student)
    text, other = teacher.model.language_model, student.model.language_model
    assert teacher.model.vision_tower is student.model.vision_tower
    assert teacher.lm_head is student.lm_head
    assert [mine is theirs for mine, theirs in zip(text.layers, other.layers, strict=True)] == [False, True] * 2
    assert text.layers[0].mlp is other.layers[0].mlp
    assert teacher.model.multi_modal_projector is not student.model.multi_modal_projector
    for module in other.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    student.train()
    inputs = prompt(alone)
    with torch.no_grad(), evaluating(teacher):
        assert torch.equal(teacher(**inputs).logits, alone(**inputs).logits)
    assert other.layers[1].training
    with torch.no_grad():
        assert not torch.equal(teacher(**inputs).logits, alone(**inputs).logits)  # dropout is on again
