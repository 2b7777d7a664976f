"""Checkpoints are written beside the training, and hold what the training had when they were asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from running import finish, until
from safetensors.torch import load_file
from test_training_loop import Regression, run, same_weights
from torch import nn

from matvlm.errors import Interrupted, UserError
from matvlm.training import checkpoint
from matvlm.training.checkpoint import Progress
from matvlm.training.writer import Writer

WAIT = 30
"""Seconds; what is waited for comes in far less."""


@pytest.fixture
def slow(monkeypatch):
    """Writes take longer than steps. What was under way at the same time is counted."""
    write, counts = checkpoint.write, {"now": 0, "most": 0, "done": 0}

    def slowly(*rest):
        counts["now"] += 1
        counts["most"] = max(counts["most"], counts["now"])
        time.sleep(0.05)
        write(*rest)
        counts["now"] -= 1
        counts["done"] += 1

    monkeypatch.setattr(checkpoint, "write", slowly)
    return counts


@pytest.fixture
def held(monkeypatch):
    """Writes wait until this event is set."""
    write, event = checkpoint.write, threading.Event()

    def waits(*rest):
        assert event.wait(WAIT)
        write(*rest)

    monkeypatch.setattr(checkpoint, "write", waits)
    yield event
    event.set()


def trained():
    """A weight and an optimizer that has moved it once."""
    weight = nn.Parameter(torch.arange(6.0).view(2, 3).t())  # not contiguous
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    return weight, optimizer


def progress(step):
    return Progress(step=step, tokens=step, seconds=0.0, scheduler={}, log="")


def contents(state):
    """Bytes of the tensors in all checkpoints, by name."""
    return {str(path.relative_to(state)): path.read_bytes() for path in state.rglob("*.safetensors")}


@pytest.mark.parametrize("changes", [{}, {"dtype": torch.bfloat16}], ids=["float32", "copies of bfloat16"])
def test_the_run_is_that_of_one_that_waits_for_its_writes(tmp_path, monkeypatch, slow, changes):
    rows, task = run(tmp_path / "beside", Regression(**changes))
    assert slow == {"now": 0, "most": 1, "done": 10}
    save = Writer.save

    def and_wait(self, *rest):
        save(self, *rest)
        self.finish()

    monkeypatch.setattr(Writer, "save", and_wait)
    expected, other = run(tmp_path / "waiting", Regression(**changes))
    assert rows == expected
    assert same_weights(task, other)
    found = contents(tmp_path / "beside")
    assert found == contents(tmp_path / "waiting")
    assert len(found) == 2 * checkpoint.KEPT


def test_what_changes_after_the_save_does_not_reach_the_file(tmp_path, held):
    weight, optimizer = trained()
    expected = weight.detach().clone()
    moment = optimizer.state[weight]["exp_avg"].clone()
    with Writer(tmp_path) as writer:
        writer.save(progress(1), {"w": weight}, optimizer)
        optimizer.step()
        assert not torch.equal(weight, expected)
        held.set()
    stored, moments = (
        load_file(tmp_path / f"step-00000001/{name}.safetensors") for name in ("weights", "optimizer")
    )
    assert torch.equal(stored["w"], expected)
    assert torch.equal(moments["w/exp_avg"], moment)
    assert float(moments["w/step"]) == 1
    assert not torch.equal(optimizer.state[weight]["exp_avg"], moment)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_a_gpu_changes_after_the_save_does_not_reach_the_file(tmp_path, held):
    weight = nn.Parameter(torch.ones(1 << 24, device="cuda"))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    with Writer(tmp_path) as writer:
        for step in (1, 2):  # the second into the same pages
            held.set()
            writer.finish()
            held.clear()
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            expected = weight.detach().cpu()
            writer.save(progress(step), {"w": weight}, optimizer)
            assert all(copy.is_pinned() for name, copy in writer._copies.items() if not name.endswith("/step"))
            with torch.no_grad():
                weight.zero_()
        held.set()
    assert torch.equal(load_file(tmp_path / "step-00000002" / "weights.safetensors")["w"], expected)


def test_a_second_save_waits_for_the_first(tmp_path, held):
    weight, optimizer = trained()
    with Writer(tmp_path) as writer:
        writer.save(progress(1), {"w": weight}, optimizer)
        second = threading.Thread(target=writer.save, args=(progress(2), {"w": weight}, optimizer))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert not list(tmp_path.iterdir())
        held.set()
        second.join(WAIT)
        assert not second.is_alive()
        assert (tmp_path / "step-00000001").is_dir()
    assert (tmp_path / "step-00000002").is_dir()


@pytest.mark.parametrize(("at", "kept"), [(3, ["step-00000001", "step-00000002"]), (10, ["step-00000009"])])
def test_an_error_of_a_write_ends_the_training(tmp_path, monkeypatch, at, kept):
    """At the next save, or at the end if there is none; and what was there stays."""
    save_file = checkpoint.save_file

    def full(tensors, path):
        if f"step-{at:08d}" in str(path):
            raise OSError(28, "No space left on device", str(path))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    task, asked = Regression(), []
    losses = task.losses
    task.losses = lambda batch, counts: (asked.append(batch["step"]), losses(batch, counts))[1]
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, task)
    assert max(asked) + 1 == min(at + 1, 10)
    assert sorted(path.name for path in tmp_path.iterdir())[-len(kept) :] == kept
    monkeypatch.undo()
    rows, resumed = run(tmp_path)
    expected, whole = run(tmp_path / "whole")
    assert rows == expected
    assert same_weights(resumed, whole)


def test_a_training_that_is_told_to_stop_finishes_its_write(tmp_path, slow):
    task = Regression()
    losses = task.losses
    task.losses = lambda batch, counts: (
        batch["step"] == 5 and signal.raise_signal(signal.SIGTERM),
        losses(batch, counts),
    )[1]
    with pytest.raises(Interrupted, match="at step 6 of 10"):
        run(tmp_path, task, save_every=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]
    assert slow["now"] == 0


@pytest.mark.parametrize(
    ("task", "newest"), [({"broken": 5}, 5), ({"full": 5}, 5)], ids=["loss not finite", "out of memory"]
)
def test_a_training_that_fails_finishes_its_write(tmp_path, slow, task, newest):
    with pytest.raises(UserError, match=str(tmp_path)):
        run(tmp_path, Regression(**task), micro_batch_size=2)
    assert max(path.name for path in tmp_path.iterdir()) == f"step-{newest:08d}"
    assert slow["now"] == 0


def test_a_write_that_fails_beside_another_error_is_a_warning(tmp_path, monkeypatch, capsys):
    def full(*rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="loss inf"):
        run(tmp_path, Regression(broken=4), save_every=4)
    assert f"warning: {tmp_path}: the last checkpoint was not written: [Errno 28]" in capsys.readouterr().err


STUCK = """
import sys, threading
from pathlib import Path
from matvlm.training import checkpoint
from test_training_loop import run
save_file = checkpoint.save_file
def stuck(tensors, path):
    save_file(tensors, path)
    if "step-00000003" in str(path) and path.name == "optimizer.safetensors":
        print("stuck", file=sys.stderr, flush=True)
        threading.Event().wait()
checkpoint.save_file = stuck
run(Path(sys.argv[1]))
"""


@pytest.mark.processes
def test_kill_in_the_middle_of_a_write_leaves_the_one_before(tmp_path, capsys):
    state = tmp_path / "state"
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(state)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: list(state.glob(".step-00000003*/optimizer.safetensors")), process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert sorted(path.name for path in state.glob("step-*")) == ["step-00000001", "step-00000002"]
    rows, resumed = run(state)
    assert "resumed at step 2 of 10" in capsys.readouterr().err
    assert not list(state.glob(".step-*"))
    expected, whole = run(tmp_path / "whole")
    assert rows == expected
    assert same_weights(resumed, whole)
