"""The benchmark of the distillation step, and that its stand-in for the release computes what the release does."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from matvlm.config import Distillation
from matvlm.distill.targets import Online
from matvlm.distill.task import DistillTask, Objective

ROOT = Path(__file__).parents[2]
SMALL = ["--batch", "2", "--sequence", "42", "--micro-batches", "1", "--steps", "1", "--device", "cpu"]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("distill_step")


@pytest.mark.parametrize("layout", ["even-25", "end-25"])
def test_the_stand_in_computes_the_releases_losses(bench, monkeypatch, layout):
    """Ours in the release's arithmetic gives the same losses and gradients, from the same two models."""
    monkeypatch.setattr(bench, "LAYOUT", layout)
    release = bench.make("release", 1, bench.parse(SMALL), torch.device("cpu"))
    for model in (release.teacher, release.model):
        model.float()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    options = {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1.0, "reduction": "release"}
    settings = Distillation(**options, warmup_steps=0, decay_steps=0, validation_rows=1)
    online, data = Online(release.teacher), release.data
    ours = DistillTask(release.model, data, online, Objective.of(bench.LOSS, "kl", settings), (data, online))
    results = []
    for task in (release, ours):
        batch = task.batch([0, 1], 0)
        release.model.zero_grad()
        loss, named = task.losses(batch, task.counts(batch))
        loss.backward()
        gradients = {n: w.grad.clone() for n, w in release.model.named_parameters() if w.grad is not None}
        results.append(({name: float(value.detach()) for name, value in named.items()}, gradients))
    (losses, gradients), (expected, theirs) = results
    assert losses == pytest.approx(expected, rel=1e-4)
    assert gradients.keys() == theirs.keys()
    difference = sum(float((gradients[name] - theirs[name]).square().sum()) for name in theirs)
    assert difference < 1e-7 * sum(float(g.square().sum()) for g in theirs.values())


@pytest.mark.parametrize("variant", ["ours", "release"])
def test_a_variant_is_measured(bench, variant):
    found = bench.measure(variant, 1, bench.parse(SMALL))
    assert found["tokens_per_s"] > 0
    assert found["peak_memory_bytes"] > 0
    assert "mfu" not in found  # a CPU's peak is not known


def test_a_step_without_room_has_no_figures(bench, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(bench.ReleaseStep, "losses", full)
    assert bench.measure("release", 1, bench.parse(SMALL)) == {}


def test_the_steps_that_are_timed_are_the_loops(bench, monkeypatch):
    """After one of a single micro-batch, so many with the whole batch."""
    args = bench.parse([*SMALL, "--steps", "2"])
    task = bench.make("release", 1, args, torch.device("cpu"))
    asked, losses = [], task.losses
    monkeypatch.setattr(
        task, "losses", lambda batch, counts: (asked.append(batch["step"]), losses(batch, counts))[1]
    )
    seconds = bench.times(task, 1, args)
    assert asked == [0, 1, 1, 2, 2]
    assert len(seconds) == 2
    assert min(seconds) > 0


@pytest.mark.processes
def test_two_processes_share_the_batch(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out.csv"
    assert bench.main([*SMALL, "--variants", "ours", "--gpus", "1", "2", "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [(row["variant"], row["gpus"]) for row in rows] == [("ours", "1"), ("ours", "2")]
    one, two = (float(row["tokens_per_s"]) for row in rows)
    assert f"2 GPUs over 1, micro-batch 1: {two / one:.2f} times the tokens a second" in capsys.readouterr().out


def test_what_is_written(bench, monkeypatch, tmp_path, capsys):
    """One row for each process; one whose memory ran out has no figures."""
    figures = {
        ("ours", "1", "1"): (30.0, 6),
        ("release", "1", "1"): (10.0, 10),
        ("ours", "2", "1"): (45.0, 8),
        ("ours", "1", "2"): (54.0, 3),
    }

    def process(command, **_):
        key = tuple(command[command.index("--one") + 1 :])
        found = dict(zip(("tokens_per_s", "peak_memory_bytes"), figures.get(key, ()), strict=False))
        assert ("torch.distributed.run" in command) == (key[2] == "2")
        return subprocess.CompletedProcess(command, int(not found), f"a library's word\n{json.dumps(found)}\n")

    monkeypatch.setattr(bench.subprocess, "run", process)
    monkeypatch.setattr(bench.provenance, "describe", lambda *_, **__: dict.fromkeys(bench.ORIGIN, "x"))
    out = tmp_path / "new" / "distill_step.csv"
    words = ["--batch", "4", "--micro-batches", "1", "2", "--gpus", "1", "2", "--out", str(out)]
    assert bench.main([*SMALL, *words]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [tuple(row[name] for name in ("variant", "micro_batch", "gpus", "tokens_per_s")) for row in rows] == [
        ("ours", "1", "1", "30.0"), ("release", "1", "1", "10.0"), ("ours", "1", "2", "54.0"),
        ("ours", "2", "1", "45.0"), ("release", "2", "1", ""), ("ours", "2", "2", ""),
    ]  # fmt: skip
    assert set(rows[0]) == {*bench.MEASURED, *bench.SETTING, *bench.ORIGIN}
    assert capsys.readouterr().out.splitlines() == [
        "micro-batch 1: 3.00 times the tokens a second, 60% of the memory",
        "each at its best: 4.50 times the tokens a second",
        "2 GPUs over 1, micro-batch 1: 1.80 times the tokens a second, 50% of the memory",
        "2 GPUs over 1, each at its best: 1.20 times the tokens a second",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--micro-batches", "3"], "--micro-batches: 3 does not divide --batch 8"),
        (["--gpus", "1", "3"], "--micro-batches: 2 does not divide the share of 3 of --batch 8"),
        (["--gpus", "0"], "--gpus: must be at least 1"),
        (["--sequence", "20"], "--sequence: 20 has no room for an image of 15 tokens"),
        (["--steps", "0"], "--steps: must be at least 1"),
    ],
)
def test_options_that_cannot_be_measured(bench, capsys, words, message):
    assert bench.main(words) == 2
    assert message in capsys.readouterr().err


def test_the_flops_that_must_be_computed(bench):
    """At the sizes of the paper, by hand: the linear maps of the three passes are most of it."""
    found = bench.flops_per_token(bench.parse(["--paper-size"]))
    width, length, image = 2560, 1428, 728
    attention, mlp, head = 4 * width**2, 8 * width**2, 51200 * width
    mixer = 5 * width**2 + 32 * width  # in: z, x, B, C and dt; out
    teacher = 2 * (32 * (attention + mlp) + head)
    student = 4 * (24 * attention + 32 * mlp + head) + (4 + 2) * 8 * mixer
    layer = 8 * (4 * mixer + 2 * mlp + 2 * width**2)
    tower = 2 * 27 * (4 * 1152**2 + 2 * 1152 * 4304) * image / length
    scores = 4 * (length / 2) * width * (32 + 3 * 24)  # of the half below the diagonal
    assert found == pytest.approx(teacher + student + layer + tower + scores, rel=0.02)
    assert bench.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert bench.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert bench.peak_flops("some GPU") is None
