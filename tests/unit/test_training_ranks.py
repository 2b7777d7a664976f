"""Processes that share a run train the student that one trains, to rounding, however many they are."""

from __future__ import annotations

import json
import os
import re
import shutil
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
from matvlm.training import checkpoint, device, loop
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


def start(small, out, count=2, **changes):
    """Processes of one run."""
    return [distill(small, out, environment=variables, **changes) for variables in ranks(count)]


def same_to_rounding(one: Path, other: Path) -> None:
    """Logs and weights of two models."""
    mine, theirs = log_of(one), log_of(other)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, expected in zip(mine, theirs, strict=True):
        assert row["tokens"] == expected["tokens"]
        for name in LOSSES:
            assert bool(row[name]) == bool(expected[name])
            if row[name]:
                assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3), (row["step"], name)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3)


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

    same_to_rounding(out, alone)
    assert json.loads((out / "provenance.json").read_text())["cell"]["seed"] == 0


ODD = {"steps": 6, "batch_size": 5, "micro_batch_size": 1, "validate_every": 3, "save_every": 1}
"""Five rows of a batch are no equal shares of two or three processes."""


@pytest.fixture(scope="module")
def odd(small, cache, tmp_path_factory) -> Path:
    """The model of a run by one process; all its checkpoints are beside it."""
    out = tmp_path_factory.mktemp("odd") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "KEPT", ODD["steps"])
        assert run.main(arguments(small, out, settings=ODD)) == 0
    return out


def rewind(state: Path, step: int) -> None:
    """Let a run go on from a step."""
    for path in state.glob("*/step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    assert max(path.name for path in state.glob("*/step-*")) == f"step-{step:08d}"


@pytest.mark.parametrize("count", [2, 3])
def test_what_one_process_began_more_of_them_go_on_with(small, cache, odd, tmp_path, capsys, count):
    """And what two go on with, one ends."""
    out, state = tmp_path / "out", tmp_path / "state"
    shutil.copytree(odd.with_name("state"), state)
    rewind(state, 2)
    ended = [finish(process) for process in start(small, out, count, settings=ODD)]
    assert [status for status, _ in ended] == [0] * count, ended
    assert "resumed at step 2 of 6" in ended[0][1]
    same_to_rounding(out, odd)
    if count == 2:
        shutil.rmtree(out)
        rewind(state, 5)
        assert run.main(arguments(small, out, settings=ODD)) == 0
        assert "resumed at step 5 of 6" in capsys.readouterr().err
        same_to_rounding(out, odd)


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
    found = []
    for _ in range(3):
        device._turn.cache_clear()  # as another process
        found += [str(pick_device("auto")), str(pick_device("auto"))]
    assert found == ["cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:0", "cuda:0"]
    assert str(pick_device("cuda")) == "cuda"
    device._turn.cache_clear()
    (counter,) = tmp_path.iterdir()
    counter.write_text("spoilt")
    assert device.next_ticket(counter) == 0
    # What is not a file of ours is left alone, and ends nothing.
    kept, link = tmp_path / "kept", tmp_path / "link"
    kept.write_text("7")
    link.symlink_to(kept)
    for place in (link, tmp_path, tmp_path / "missing" / "file"):
        assert device.next_ticket(place) == os.getpid()
    assert kept.read_text() == "7"


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
