"""The training loop on a small regression: schedule, clipping, accumulation, what is logged, and exact resume."""

from __future__ import annotations

import csv
import io
import json
import math
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from matvlm.config import Optimisation
from matvlm.errors import UserError
from matvlm.provenance import Cost, file_hash
from matvlm.training import checkpoint
from matvlm.training.loop import MAX_SKIPPED, parameter_groups, train
from matvlm.training.order import Order

ROWS = 20
SETTINGS = {
    "steps": 10,
    "batch_size": 4,
    "micro_batch_size": 4,
    "learning_rate": 0.1,
    "warmup_steps": 2,
    "decay_steps": 4,
    "save_every": 1,
}


class Regression:
    """A task with dropout and a weight that the loss does not use, as the connector is to the layer loss.

    At the steps ``poisoned`` the loss is fine and its gradient is not; from step ``broken`` on it is infinite,
    and at step ``full`` the second micro-batch finds no memory.
    """

    def __init__(self, poisoned=(), broken=None, full=None, dtype=torch.float32) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.model.unused = nn.Parameter(torch.ones(2, 2))
        draw = np.random.default_rng(0)
        self.x, self.y = (torch.tensor(draw.normal(size=(ROWS, n)), dtype=torch.float32) for n in (3, 1))
        self.poisoned, self.broken, self.full = poisoned, broken, full
        self.model.to(dtype)
        self.x, self.y = self.x.to(dtype), self.y.to(dtype)

    def batch(self, rows, step):
        return {"x": self.x[rows], "y": self.y[rows], "step": step, "tokens": 5 * len(rows)}

    def counts(self, batch):
        return {"tokens": float(batch["tokens"]), "rows": float(len(batch["x"]))}

    def losses(self, batch, counts):
        if batch["step"] == self.full and self.model[0].weight.grad is not None:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB.\nOf the allocated memory …"
            )
        loss = (self.model(batch["x"]) - batch["y"]).square().sum() / counts["rows"]
        if batch["step"] in self.poisoned:
            loss = loss + (0 * self.model[0].weight).sum().sqrt()  # zero, with a gradient that is not a number
        if self.broken is not None and batch["step"] >= self.broken:
            loss = loss * math.inf
        return loss, {"loss_ce": loss}

    @torch.no_grad()
    def validate(self):
        self.model.eval()
        value = float((self.model(self.x) - self.y).square().mean())
        self.model.train()
        return {"val_ce": value}


def run(state, task=None, **changes):
    """Rows of the log, without the wall time, and the task."""
    task = task or Regression()
    settings = Optimisation(**SETTINGS | changes)
    order = Order(np.arange(ROWS), settings.batch_size, 0)
    text = train(task, settings, order, seed=0, state=state, title="regression")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(io.StringIO(text))], task


def numbers(rows, column):
    return [float(row[column]) for row in rows if row[column]]


def same_weights(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_rate_rises_on_a_line_stays_and_falls_on_a_cosine(tmp_path):
    rates = numbers(run(tmp_path)[0], "lr")
    decay = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert rates == pytest.approx([0.1 * share for share in (0, 0.5, 1, 1, 1, 1, *decay)], rel=1e-6)


def test_the_decay_ends_at_the_share_configured(tmp_path):
    changes = {"min_learning_rate_ratio": 0.5, "warmup_steps": 0, "decay_steps": 10}
    rates = numbers(run(tmp_path, **changes)[0], "lr")
    decay = [0.5 + 0.5 * 0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(10)]
    assert rates == pytest.approx([0.1 * share for share in decay], rel=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_losses_of_one_batch(tmp_path, size):
    def without_dropout():
        task = Regression()
        task.model[1].p = 0.0
        return task

    whole, one = run(tmp_path / "1", without_dropout())
    parts, other = run(tmp_path / "2", without_dropout(), micro_batch_size=size)
    for column in ("loss", "loss_ce", "grad_norm", "val_ce", "tokens"):
        assert numbers(parts, column) == pytest.approx(numbers(whole, column), rel=1e-4)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_the_gradient_is_clipped_to_its_norm(tmp_path, limit):
    """AdamW's first moment after one step is (1 - beta) times the gradient that it was given."""
    rows, _ = run(tmp_path, steps=1, warmup_steps=0, decay_steps=0, max_grad_norm=limit, betas=(0.5, 0.9))
    moments = load_file(tmp_path / "step-00000001" / "optimizer.safetensors")
    given = 2 * torch.cat([value.flatten() for name, value in moments.items() if name.endswith("/exp_avg")]).norm()
    norm = numbers(rows, "grad_norm")[0]
    assert 0.1 < norm < 1e5  # logged as it was, not as it was clipped
    assert float(given) == pytest.approx(min(norm, limit), rel=1e-4)


def test_vectors_do_not_decay():
    weights = dict(Regression().model.named_parameters())
    groups = parameter_groups(weights, 0.3)
    assert [{w.ndim for w in group["params"]} for group in groups] == [{2}, {1}]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(weights)
    assert len(parameter_groups({"a": nn.Parameter(torch.ones(2, 2))}, 0.3)) == 1


def test_what_is_logged_validated_and_kept(tmp_path):
    rows, _ = run(tmp_path, log_every=4, validate_every=3, save_every=4)
    assert [row["step"] for row in rows] == ["0", "3", "4", "6", "8", "9", "10"]
    assert [row["step"] for row in rows if row["val_ce"]] == ["0", "3", "6", "9", "10"]
    assert numbers(rows, "tokens") == [20 * int(row["step"]) for row in rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008", "step-00000010"]


def test_it_learns(tmp_path):
    rows, _ = run(tmp_path, steps=60)
    losses = numbers(rows, "val_ce")
    assert losses[-1] < 0.8 * losses[0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def interrupted(state, monkeypatch, at, **changes):
    """A run that ends as after a crash: when the checkpoint of step ``at`` has been written."""
    write = checkpoint.write

    def stopped(folder, progress, found):
        write(folder, progress, found)
        if progress.step == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(state, **changes)


@pytest.mark.parametrize("at", [1, 5, 9])
def test_resume_equals_no_interruption_bit_for_bit(tmp_path, monkeypatch, capsys, at):
    """Dropout, schedule, moments and log included, though one weight never has a gradient."""
    expected, whole = run(tmp_path / "whole")
    interrupted(tmp_path / "state", monkeypatch, at)
    rows, resumed = run(tmp_path / "state")
    assert f"resumed at step {at} of 10" in capsys.readouterr().err
    assert rows == expected
    assert same_weights(resumed, whole)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", [cut, lambda path: path.unlink()], ids=["cut short", "missing"])
def test_a_checkpoint_that_is_not_whole_is_named_and_passed_over(tmp_path, monkeypatch, capsys, name, how):
    expected, whole = run(tmp_path / "whole")
    interrupted(tmp_path / "state", monkeypatch, 5)
    how(tmp_path / "state" / "step-00000005" / name)
    rows, resumed = run(tmp_path / "state")
    error = capsys.readouterr().err
    assert f"warning: {tmp_path / 'state' / 'step-00000005'}: not whole" in error
    assert "resumed at step 4 of 10" in error
    assert rows == expected
    assert same_weights(resumed, whole)


def rewrite(folder, change):
    """Change a checkpoint's state.json."""
    path = folder / "state.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def reshape(folder, name, tensors):
    """Put other tensors into a checkpoint, and their hash."""
    save_file(tensors, folder / name)
    digest = file_hash(folder / name)
    rewrite(folder, lambda state: {**state, "files": state["files"] | {name: digest}})


DAMAGES = {
    "a list": lambda folder: rewrite(folder, lambda state: [state]),
    "no progress": lambda folder: rewrite(folder, lambda state: {"files": state["files"]}),
    "no files": lambda folder: rewrite(folder, lambda state: {"progress": state["progress"]}),
    "files a list": lambda folder: rewrite(folder, lambda state: state | {"files": ["weights.safetensors"]}),
    "progress cut": lambda folder: rewrite(folder, lambda state: state | {"progress": {"step": 5}}),
    "step a text": lambda folder: rewrite(
        folder, lambda state: state | {"progress": state["progress"] | {"step": "5"}}
    ),
    "other names": lambda folder: reshape(folder, "weights.safetensors", {"a": torch.ones(1)}),
    "other shapes": lambda folder: reshape(
        folder,
        "weights.safetensors",
        {name: torch.ones(1) for name, _ in Regression().model.named_parameters()},
    ),
    "moments cut": lambda folder: reshape(folder, "optimizer.safetensors", {"0.weight/step": torch.ones(1)}),
    "moments of other shapes": lambda folder: reshape(
        folder,
        "optimizer.safetensors",
        {f"0.weight/{key}": torch.ones(1) for key in checkpoint.MOMENTS},
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_does_not_fit_is_named_and_passed_over(tmp_path, monkeypatch, capsys, damage):
    expected, whole = run(tmp_path / "whole")
    interrupted(tmp_path / "state", monkeypatch, 5)
    DAMAGES[damage](tmp_path / "state" / "step-00000005")
    rows, resumed = run(tmp_path / "state")
    error = capsys.readouterr().err
    assert f"warning: {tmp_path / 'state' / 'step-00000005'}: not whole" in error
    assert "resumed at step 4 of 10" in error
    assert rows == expected
    assert same_weights(resumed, whole)


def test_tensorboard_shows_every_step_of_a_resumed_run_once(tmp_path, monkeypatch):
    """The run is resumed from before the steps that it had sent last."""
    settings, order = Optimisation(**SETTINGS | {"save_every": 4}), Order(np.arange(ROWS), 4, 0)

    def go(task):
        options = {"seed": 0, "state": tmp_path / "state", "title": "r", "tensorboard": tmp_path / "events"}
        return train(task, settings, order, **options)

    task = Regression()
    batch = task.batch

    def dies(rows, step):
        if step == 7:
            raise KeyboardInterrupt
        return batch(rows, step)

    task.batch = dies
    with pytest.raises(KeyboardInterrupt):
        go(task)
    time.sleep(1.1)  # event files are named, and read, by the second they were begun in
    go(Regression())
    found = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 11))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_on_the_cpu_is_trained_there_also_beside_a_gpu(tmp_path, monkeypatch, precision):
    """`--device cpu` on a machine with a GPU, for which accelerate takes it by itself."""
    expected, whole = run(tmp_path / "without", precision=precision)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(PartialState, "default_device", property(lambda _: torch.device("cuda")))
    try:
        rows, task = run(tmp_path / "beside", precision=precision)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert rows == expected
    assert same_weights(task, whole)


def test_with_no_whole_checkpoint_it_starts_anew(tmp_path, monkeypatch, capsys):
    expected, whole = run(tmp_path / "whole")
    interrupted(tmp_path / "state", monkeypatch, 5)
    for folder in (tmp_path / "state").iterdir():
        cut(folder / "weights.safetensors")
    rows, again = run(tmp_path / "state")
    error = capsys.readouterr().err
    assert error.count("not whole") == 2
    assert "resumed" not in error
    assert rows == expected
    assert same_weights(again, whole)


def test_a_finished_run_is_not_trained_again(tmp_path):
    expected, whole = run(tmp_path)
    task = Regression()
    task.losses = None  # anything that trains would fail
    rows, again = run(tmp_path, task)
    assert rows == expected
    assert same_weights(again, whole)


def test_a_resumed_run_costs_what_it_cost_before_too(tmp_path):
    cost = Cost()
    settings, order = Optimisation(**SETTINGS), Order(np.arange(ROWS), SETTINGS["batch_size"], 0)
    text = train(Regression(), settings, order, seed=0, state=tmp_path, title="regression", cost=cost)
    assert cost.before_s == 0
    train(Regression(), settings, order, seed=0, state=tmp_path, title="regression", cost=cost)
    assert cost.before_s == pytest.approx(float(list(csv.DictReader(io.StringIO(text)))[-1]["seconds"]), abs=1)
    assert cost.before_s > 0


def test_a_resumed_run_of_two_stages_costs_what_both_cost_before(tmp_path):
    settings, order = Optimisation(**SETTINGS), Order(np.arange(ROWS), SETTINGS["batch_size"], 0)

    def stage(name, cost):
        return train(Regression(), settings, order, seed=0, state=tmp_path / name, title=name, cost=cost)

    def seconds(name):
        state = json.loads((tmp_path / name / "step-00000010" / "state.json").read_text())
        return state["progress"]["seconds"]

    for name in ("align", "tune"):
        stage(name, Cost())
    cost = Cost()
    for name in ("align", "tune"):
        stage(name, cost)
    assert cost.before_s == pytest.approx(seconds("align") + seconds("tune"))


def test_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        run(tmp_path, Regression(broken=3))
    for word in ("loss inf", "at step 4", "rows ", f"last good checkpoint is in {tmp_path}"):
        assert word in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the very first update is left out
@pytest.mark.parametrize("steps", [[0], [4, 5, 6]])
def test_a_gradient_that_is_not_finite_gives_no_update(tmp_path, monkeypatch, capsys, steps):
    rows, task = run(tmp_path / "a", Regression(poisoned=steps))
    assert capsys.readouterr().err.count("warning: regression: no update at step") == len(steps)
    assert all(bool(torch.isfinite(weight).all()) for weight in task.model.parameters())
    assert [row["step"] for row in rows if row["grad_norm"] == "nan"] == [str(step + 1) for step in steps]
    # A run that goes on after such a step, even after the very first one, is the uninterrupted one too.
    interrupted(tmp_path / "b", monkeypatch, steps[0] + 1, task=Regression(poisoned=steps))
    resumed_rows, resumed = run(tmp_path / "b", Regression(poisoned=steps))
    assert resumed_rows == rows
    assert same_weights(resumed, task)


def test_too_many_gradients_that_are_not_finite(tmp_path):
    with pytest.raises(UserError, match=f"gradient norm nan at step {3 + MAX_SKIPPED + 1}"):
        run(tmp_path, Regression(poisoned=range(3, 10)))


def test_an_error_while_a_batch_is_read_is_raised(tmp_path):
    task = Regression()
    batch = task.batch

    def reading(rows, step):
        if step == 3:
            raise UserError("cache: cut short")
        return batch(rows, step)

    task.batch = reading
    with pytest.raises(UserError, match="cache: cut short"):
        run(tmp_path, task)


@pytest.mark.parametrize("size", [4, 6, 7, 30])
def test_every_epoch_sees_every_row_once(size):
    rows = np.arange(100, 120)
    order = Order(rows, size, seed=3)
    seen = np.concatenate([order(step) for step in range(60)])
    for start in range(0, len(seen) - ROWS, ROWS):
        assert sorted(seen[start : start + ROWS]) == sorted(rows)
    assert not np.array_equal(seen[:ROWS], seen[ROWS : 2 * ROWS])


def test_the_order_is_a_function_of_seed_and_step():
    order, again = Order(np.arange(ROWS), 6, seed=3), Order(np.arange(ROWS), 6, seed=3)
    backwards = {step: again(step) for step in reversed(range(20))}
    assert all(np.array_equal(order(step), backwards[step]) for step in range(20))
    assert not np.array_equal(order(0), Order(np.arange(ROWS), 6, seed=4)(0))
