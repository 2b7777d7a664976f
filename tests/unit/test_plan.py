"""What `matvlm plan` says, against what is counted while real models run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from test_config import RANDOM
from torch.utils.flop_counter import FlopCounterMode

from matvlm import plan
from matvlm.config import Distillation, load_config
from matvlm.data.dataset import load_split
from matvlm.data.processor import load_processor
from matvlm.distill.forward import Needs, teacher_pass
from matvlm.distill.targets import Online
from matvlm.distill.task import DistillTask, Objective, select_trainable
from matvlm.models.folder import load_model
from matvlm.models.llava import new_model
from matvlm.teacher.architecture import llava_config

ROOT = Path(__file__).parents[2]
COUNTED = {"attn_implementation": "eager"}
"""The kernels that torch counts the FLOPs of; its fused attention on a CPU it does not."""


@pytest.fixture(scope="module")
def raw():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.fixture(scope="module")
def data(small):
    return load_split(small / "data" / "distill", load_processor(small / "teacher"), 448).vary()


@pytest.mark.parametrize("loss", ["prob", "layer", "ce", "prob+layer+ce"])
def test_flops_are_those_of_a_real_step(small, data, loss):
    student = load_model(small / "init" / "attention-even-50", **COUNTED)
    select_trainable(student)
    options = {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1.0}
    settings = Distillation(**options, warmup_steps=0, decay_steps=0, validation_rows=1)
    teacher = Online(load_model(small / "teacher"))
    task = DistillTask(student, data, teacher, Objective.of(loss, "kl", settings), (data, teacher))
    batch = task.batch(np.array([0, 1]), 0)
    counts, length = task.counts(batch), batch["input_ids"].shape[1]
    targets = batch["targets"]()
    batch["targets"] = lambda: targets  # the teacher's FLOPs do not count here
    scores = targets.scores and targets.scores(torch.arange(2 * length))
    targets.scores = lambda index: scores[index]
    # The scan works on whole chunks; here they fill the length.
    chunk = next(size for size in range(64, 0, -1) if length % size == 0)
    student.config.text_config.mamba_chunk_size = chunk
    for index in student.config.text_config.mamba_layers:
        student.model.language_model.layers[index].mamba.chunk_size = chunk
    with FlopCounterMode(display=False) as counter:
        value, _ = task.losses(batch, counts)
        value.backward()
    counted = dict(counter.get_flop_counts()["Global"])
    # Torch counts the gradient of a convolution as if it had one group, not one a channel.
    counted[torch.ops.aten.convolution_backward] = 2 * counted[torch.ops.aten.convolution]
    size = plan.measure(student.config, length)
    scored = batch["tokens"] if "prob" in loss else counts["answers"]
    flops = plan.distill_flops(size, loss, 2 * length, 2 * student.config.image_seq_length, scored)
    assert flops == pytest.approx(sum(counted.values()), rel=0.01)
    assert size.trained == sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    assert size.total == sum(weight.numel() for weight in student.parameters())


@pytest.mark.parametrize(
    ("loss", "needs"), [("prob", Needs((), True)), ("layer", Needs((0, 1, 2))), ("ce", Needs())]
)
def test_flops_of_a_teachers_pass(small, data, loss, needs):
    """With L_layer alone it ends after the second of four layers, with L_ce alone after the tower."""
    teacher = load_model(small / "teacher", **COUNTED)
    batch = data.batch([0, 1])
    with FlopCounterMode(display=False) as counter:
        passed = teacher_pass(teacher, batch, needs)
        if needs.scores:
            teacher.lm_head(passed.hidden)
    length = batch["input_ids"].shape[1]
    size = plan.measure(teacher.config, length)
    flops = plan.online_flops(size, loss, 2 * length, 2 * teacher.config.image_seq_length, 0.5)
    # Attention within the tower is not in the formula, and is much of what so small a tower does.
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.1 if loss == "prob" else 0.3)


def test_cache_bytes_are_those_of_a_real_cache(small, cache, debug):
    manifest = json.loads((cache / "manifest.json").read_text())
    held = 0
    for path in cache.glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            tensors = [shard.get_tensor(name) for name in shard.keys()]  # noqa: SIM118
            held += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    config = load_model(small / "teacher").config
    assert plan.cache_bytes(config, debug.cache, sum(manifest["rows"]), len(manifest["rows"])) == held
    topk = debug.cache.model_copy(update={"mode": "topk", "top_k": 3, "tail_draws": 2})
    saved = sum(manifest["rows"]) * 4 * (config.text_config.vocab_size - 11)
    assert plan.cache_bytes(config, topk, sum(manifest["rows"]), len(manifest["rows"])) == held - saved
    assert plan.cache_bytes(config, debug.cache.model_copy(update={"mode": "online"}), 10, 1) == 0
    three = sum(manifest["rows"]) * 4 * 3 * config.text_config.hidden_size
    assert (
        plan.cache_bytes(config, debug.cache, sum(manifest["rows"]), len(manifest["rows"]), points=2)
        == held - three
    )


def test_architecture_is_the_shipped_teachers(raw):
    config = load_config(raw | {"preset": "tiny"})
    shipped = load_model(ROOT / "models" / "tiny-teacher").config
    planned = plan.teacher_architecture(config.active)
    assert plan.measure(planned, 448) == plan.measure(shipped, 448)
    assert planned.text_config.vocab_size == shipped.text_config.vocab_size


def test_every_cell_is_listed_with_its_tables(raw):
    lines = plan.plan(load_config(raw | {"preset": "debug"})).splitlines()
    assert "2 cells x 1 seeds = 2 runs" in lines[0]
    assert "at most 5,376 tokens (3 steps x 4 conversations x 448 tokens)" in lines[0]
    named = {line.split()[0]: line.split()[1] for line in lines[3:5]}
    assert named == {"attention/even-25/prob+layer+ce/kl": "all", "attention/even-25/ce/none": "losses"}
    assert "at most 10,752 tokens" in lines[6]


def test_a_preset_that_only_measures(raw):
    preset = yaml.safe_load(RANDOM)
    preset["profile"] |= {"protocols": ["same_runtime", "paper"], "batch_sizes": [1, 4], "dtype": "bfloat16"}
    config = load_config(raw | {"preset": "big", "presets": {"big": preset}})
    lines = plan.plan(config).splitlines()
    # 2 points, 3 repeats; 3 models in one runtime, and 2 kinds of attention and 2 hybrids as the paper measured
    assert "nothing is trained; at most 42 measurements" in lines[0]
    assert "up to 144 tokens" in lines[0]
    rows = {line.split()[0]: line.split() for line in lines[3:]}
    assert [*rows] == ["teacher", "even-25", "release-12.5"]
    teacher = measure_held(config.active.teacher, batch=4, context=144)
    assert rows["teacher"][-1] == f"{teacher:,}"
    assert [rows[name][1] for name in rows] == ["0", "8", "4"]
    assert int(rows["even-25"][-1].replace(",", "")) == teacher * 24 // 32
    weights, held = (int(rows["teacher"][at].replace(",", "")) for at in (4, 5))
    assert held == 2 * weights


def measure_held(settings, batch, context):
    """Bytes of the keys and values of a real forward pass of the teacher."""
    model = new_model(llava_config(settings)).to(torch.bfloat16)
    cache = model.model.language_model(
        inputs_embeds=torch.zeros(batch, context, settings.text.hidden_size, dtype=torch.bfloat16), use_cache=True
    ).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_seeds_and_the_online_teacher_cost(raw):
    preset = raw["presets"]["debug"]
    seeds = {**preset, "ablation": {**preset["ablation"], "seeds": [0, 1, 2]}}
    online = {**preset, "cache": {"mode": "online"}}
    plans = {
        name: plan.plan(load_config(raw | {"preset": "debug", "presets": {"debug": one}}))
        for name, one in {"plain": preset, "seeds": seeds, "online": online}.items()
    }

    def total(text):
        return float(next(line for line in text.splitlines() if line.startswith("all runs")).split()[-2])

    assert total(plans["seeds"]) == pytest.approx(3 * total(plans["plain"]), rel=0.01)
    assert total(plans["online"]) > 1.2 * total(plans["plain"])
    assert "bytes" not in plans["online"]


def test_a_cache_of_needed_states_is_smaller(raw):
    """The debug preset compares layer 0 of four, from input to output."""
    preset = raw["presets"]["debug"]
    sizes = {}
    for states in ("all", "needed"):
        one = {**preset, "cache": {**preset["cache"], "states": states}}
        text = plan.plan(load_config(raw | {"preset": "debug", "presets": {"debug": one}}))
        line = next(line for line in text.splitlines() if line.startswith("cache"))
        sizes[states] = int(line.split("at most ")[1].split()[0].replace(",", ""))
    assert sizes["all"] - sizes["needed"] == 8 * 448 * 3 * 32 * 4
