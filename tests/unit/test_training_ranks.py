"""Two processes that share a run train the student that one trains, to rounding."""

from __future__ import annotations

import json
import re
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from running import distill, finish, ranks, until
from safetensors.torch import load_file
from test_distill_run import arguments, log_of
from test_training_loop import run as regression

from matvlm.distill import run
from matvlm.errors import UserError
from matvlm.training import loop
from matvlm.training.device import pick_device

pytestmark = pytest.mark.processes
STEPS = 40
SETTINGS = {"steps": STEPS, "micro_batch_size": 1, "validate_every": 20, "save_every": 5}
LOSSES = ("loss", "loss_prob", "loss_layer", "loss_ce", "grad_norm", "val_kl", "val_ce")


@pytest.fixture(scope="module")
def alone(small, cache, tmp_path_factory) -> Path:
    """The model of a run by one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert run.main(arguments(small, out, settings=SETTINGS)) == 0
    return out


def start(small, out, **changes):
    """Two processes of one run."""
    return [distill(small, out, environment=variables, **changes) for variables in ranks(2)]


def test_two_processes_interrupted_and_resumed_give_the_losses_of_one(small, cache, alone, tmp_path):
    """The signal comes to one of them; both end at the same step, and only the first one writes."""
    out, state = tmp_path / "out", tmp_path / "state"
    processes = start(small, out, settings=SETTINGS)
    until(lambda: list(state.glob("*/step-*")), processes[0])
    processes[1].send_signal(signal.SIGUSR2)
    ended = [finish(process) for process in processes]
    assert [status for status, _ in ended] == [75, 75], ended
    steps = {re.search(rf"interrupted at step (\d+) of {STEPS}", error)[1] for _, error in ended}
    assert len(steps) == 1

    ended = [finish(process) for process in start(small, out, settings=SETTINGS)]
    assert [status for status, _ in ended] == [0, 0], ended
    assert f"resumed at step {steps.pop()} of {STEPS}" in ended[0][1]
    assert "resumed" not in ended[1][1]
    assert "%|" not in ended[1][1]  # no progress bar of its own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "state"]

    mine, theirs = log_of(out), log_of(alone)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one["tokens"] == other["tokens"]
        for name in LOSSES:
            assert bool(one[name]) == bool(other[name])
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-3), (one["step"], name)
    one, other = load_file(out / "model.safetensors"), load_file(alone / "model.safetensors")
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-2, atol=1e-3)
    assert json.loads((out / "provenance.json").read_text())["cell"]["seed"] == 0


def test_more_processes_than_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Accelerator, "num_processes", 8)
    with pytest.raises(UserError, match="batch_size 4 gives 8 processes nothing to do"):
        regression(tmp_path)


def test_jobs_side_by_side_are_spread_over_the_gpus(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert [str(pick_device("auto")) for _ in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert str(pick_device("cuda")) == "cuda"
    (counter,) = tmp_path.iterdir()
    counter.write_text("spoilt")
    assert str(pick_device("auto")) == "cuda:0"


@pytest.mark.parametrize(("visible", "expected"), [(4, "cuda:3"), (1, "cuda:0")])
def test_each_process_has_its_gpu(monkeypatch, visible, expected):
    """A launcher shows all GPUs of the node to each process, or to each its own alone."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto") == torch.device(expected)
    assert chosen == [torch.device(expected)]
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("cuda:2") == torch.device("cuda:2")
