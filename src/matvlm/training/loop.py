"""The one training loop, for the teacher and for students: AdamW, warm-up-stable-decay, gradient
accumulation, clipping, validation, logging and exact resume, on accelerate.

All randomness of a step comes from (seed, step), so that a resumed run is the uninterrupted one bit for bit.
Losses are sums over the whole batch divided by counts over the whole batch, so that neither the
micro-batch size nor the number of devices changes them.

Several processes share a run where the variables of torch.distributed say so (RANK, WORLD_SIZE, …): each takes
its part of every batch, and the first one validates, logs and writes.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from transformers import get_wsd_schedule

from matvlm.config import Optimisation
from matvlm.errors import Interrupted, UserError
from matvlm.progress import progress
from matvlm.provenance import Cost
from matvlm.training import checkpoint, interrupt, ranks
from matvlm.training.log import Log
from matvlm.training.masters import Masters
from matvlm.training.memory import advice
from matvlm.training.writer import Writer

MAX_SKIPPED = 3
"""Steps on end that may go without an update because a gradient is not finite though the loss is."""


class Task(Protocol):
    """What the loop trains: a model, its data and its losses. One whose weights are shared out among processes has
    a true attribute ``sharded``: all of them take part in its passes, validation included."""

    model: nn.Module

    def batch(self, rows: np.ndarray, step: int) -> dict[str, Any]:
        """The rows as a micro-batch on the device, with ``tokens``, the number of real positions."""

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        """What each loss of this micro-batch is to be divided by, before adding up over the batch."""

    def losses(self, batch: dict[str, Any], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the loss to minimise, and of each named loss."""

    def validate(self) -> dict[str, float]:
        """Validation losses, by column of the log."""


@interrupt.listening()
def train(
    task: Task,
    settings: Optimisation,
    order: Callable[[int], np.ndarray],
    *,
    seed: int,
    state: Path,
    title: str,
    tensorboard: Path | None = None,
    cost: Cost | None = None,
) -> str:
    """Train ``task.model``'s weights that require gradients for ``settings.steps`` steps.

    Args:
        order: rows of each step, counted from 0. seed: of dropout and augmentation.
        state: folder of resumable checkpoints; a run found there is continued.
        title: of the progress bar. tensorboard: folder for event files, or none.
        cost: of the run, which is told what a run found in ``state`` has cost.

    Returns:
        The text of log.csv, with the columns `matvlm.training.log.COLUMNS`.

    Raises:
        UserError: a loss that is not finite, or gradients that are not for more than `MAX_SKIPPED` steps on
            end, which are skipped until then; the last good checkpoint stays in ``state``. A GPU that runs out
            of memory; a checkpoint of the last whole step is in ``state``.
        Interrupted: told to stop by SIGUSR2 or SIGTERM; a checkpoint of the step then running is in ``state``.
    """
    on_cpu = all(weight.device.type == "cpu" for weight in task.model.parameters())
    if "RANK" in os.environ:  # accelerate would set the number of threads by what the whole machine has
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    trained = {name: weight for name, weight in task.model.named_parameters() if weight.requires_grad}
    masters = Masters(trained)
    weights = masters.weights
    # Weights that are bfloat16 themselves need no autocast, which would only add conversions.
    mixed = settings.precision == "bfloat16" and all(weight is trained[name] for name, weight in weights.items())
    ranks.open_group(on_cpu)
    accelerator = Accelerator(
        mixed_precision="bf16" if mixed else "no",
        cpu=on_cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=ranks.TIMEOUT)],
    )
    main, count = accelerator.is_main_process, accelerator.num_processes
    validate = task.validate if main or getattr(task, "sharded", False) else dict
    if count > settings.batch_size:
        raise UserError(f"batch_size {settings.batch_size} gives {count} processes nothing to do; use fewer")
    torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else "highest")
    optimizer = torch.optim.AdamW(
        parameter_groups(weights, settings.weight_decay),
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=not on_cpu,
    )
    scheduler = get_wsd_schedule(
        optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_decay_steps=settings.decay_steps,
        num_training_steps=settings.steps,
        min_lr_ratio=settings.min_learning_rate_ratio,
    )
    if main:
        checkpoint.clear(state)
    done = checkpoint.load_newest(state, weights, optimizer)
    if len(set(_each(accelerator, 0 if done is None else done.step))) > 1:
        raise UserError(f"{state}: processes find different checkpoints here; it must be one folder for all nodes")
    masters.publish()
    log = Log(tensorboard if main else None, start=0 if done is None else done.step + 1)
    if done is None:
        done = checkpoint.Progress(step=0, tokens=0, seconds=0.0, scheduler={}, log="")
        log.add(step=0, tokens=0, seconds=0.0, **validate())
    else:
        if cost is not None:
            cost.before_s += done.seconds  # a run of two stages has been here before
        scheduler.load_state_dict(done.scheduler)
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        log.restore(done.log)
        if main:
            print(f"{title}: resumed at step {done.step} of {settings.steps}", file=sys.stderr)

    tokens, start, skipped = done.tokens, time.perf_counter() - done.seconds, 0
    step, unsaved = done.step, None
    """The step under way, and the steps done if they are whole, in the log and in no checkpoint."""

    def load(step: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        rows = order(step)[accelerator.process_index :: count]
        return rows, [task.batch(part, step) for part in _split(rows, settings.micro_batch_size)]

    def save(at: int) -> None:
        seconds = time.perf_counter() - start
        reached = checkpoint.Progress(at, tokens, seconds, _plain(scheduler.state_dict()), log.text())
        writer.save(reached, weights, optimizer)

    bar = progress(range(done.step, settings.steps), title, initial=done.step, total=settings.steps)
    with Writer(state) as writer:
        ranks.resumes_from(state, writer.settle)
        try:
            for step, (rows, batches) in zip(bar, _ahead(load, done.step, settings.steps), strict=True):
                torch.manual_seed((seed << 32) + step)
                counts = _reduce(accelerator, [task.counts(batch) for batch in batches])
                parts: list[dict[str, Tensor]] = []
                for batch in batches:
                    with accelerator.autocast():
                        loss, named = task.losses(batch, counts)
                    accelerator.backward(loss)
                    masters.collect()
                    parts.append({name: value.detach() for name, value in {"loss": loss, **named}.items()})
                _sum_gradients(accelerator, weights)
                norm = nn.utils.clip_grad_norm_(weights.values(), settings.max_grad_norm)
                finite = bool(torch.isfinite(norm))
                skipped = 0 if finite else skipped + 1
                means = {name: sum(part[name] for part in parts) for name in parts[0]}
                # The norm is the same in all processes, the loss is each one's own part: they must end together.
                if skipped > MAX_SKIPPED or any(_each(accelerator, not torch.isfinite(means["loss"]))):
                    found = f"loss {float(means['loss']):g} with gradient norm {float(norm):g} at step {step + 1}"
                    batch = _culprit(rows, parts, settings.micro_batch_size)
                    raise UserError(f"{title}: {found}, {batch}; the last good checkpoint is in {state}")
                if not finite and main:
                    problem = f"no update at step {step + 1}: gradient norm {float(norm):g}"
                    print(f"warning: {title}: {problem}", file=sys.stderr)
                rate = scheduler.get_last_lr()[0]
                unsaved = None  # while weights change
                if finite:
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                masters.publish()
                scheduler.step()
                tokens += int(counts["tokens"])

                at = step + 1
                last = at == settings.steps
                validates = last or at % settings.validate_every == 0
                validated = validate() if validates else {}
                if validates or at % settings.log_every == 0:
                    values = {name: float(accelerator.reduce(value, "sum")) for name, value in means.items()}
                    seconds = time.perf_counter() - start
                    log.add(
                        step=at,
                        tokens=tokens,
                        lr=rate,
                        grad_norm=float(norm),
                        seconds=seconds,
                        **values,
                        **validated,
                    )
                    bar.set_postfix(loss=f"{values['loss']:.4f}", **{k: f"{v:.4f}" for k, v in validated.items()})
                unsaved = at  # once its row is in the log
                stops = not last and any(_each(accelerator, interrupt.asked()))
                if last or stops or at % settings.save_every == 0:
                    if main:
                        save(at)
                    unsaved = None
                if stops:
                    bar.close()
                    log.close()
                    writer.finish()
                    accelerator.wait_for_everyone()  # one process that ends may take the others with it
                    where = f"step {at} of {settings.steps}; the state to resume from is in {state}"
                    raise Interrupted(f"{title}: interrupted at {where}")
        except torch.OutOfMemoryError:
            if main and unsaved is not None:
                save(unsaved)
            writer.finish()
            kept = f"; the state to resume from is in {state}" if any(state.glob("step-*")) else ""
            raise UserError(f"{title}: out of GPU memory at step {step + 1}: {advice(settings)}{kept}") from None
    log.close()
    return log.text()


def parameter_groups(weights: dict[str, nn.Parameter], weight_decay: float) -> list[dict]:
    """AdamW's groups: no decay on vectors and biases, as in the release."""
    matrices = [w for w in weights.values() if w.ndim >= 2]
    vectors = [w for w in weights.values() if w.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _split(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _culprit(rows: np.ndarray, parts: list[dict[str, Tensor]], size: int) -> str:
    """The rows of the first micro-batch whose loss is not finite, or of all of them where there is none."""
    for part, found in zip(_split(rows, size), parts, strict=True):
        if not torch.isfinite(found["loss"]):
            rows = part
            break
    more = "…" if len(rows) > 8 else ""
    return f"rows {', '.join(map(str, rows[:8]))}{more}"


def _ahead(load: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
    """``load(step)`` for each step, the next one made in a thread while this one is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(load, start) if start < stop else None
        for step in range(start, stop):
            ready = waiting.result()
            waiting = pool.submit(load, step + 1) if step + 1 < stop else None
            yield ready


def _reduce(accelerator: Accelerator, parts: list[dict[str, float]]) -> dict[str, float]:
    """Counts added up over micro-batches and devices."""
    names = sorted(parts[0])
    totals = torch.tensor([sum(part[name] for part in parts) for name in names], dtype=torch.float64)
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals.to(accelerator.device), "sum").cpu()
    return dict(zip(names, totals.tolist(), strict=True))


def _each(accelerator: Accelerator, value: float) -> list[float]:
    """A number of every process, the same list in all of them."""
    if accelerator.num_processes == 1:
        return [float(value)]
    return accelerator.gather(torch.tensor([float(value)], device=accelerator.device)).tolist()


def _sum_gradients(accelerator: Accelerator, weights: dict[str, nn.Parameter]) -> None:
    """Add up the devices' shares of all gradients at once. The trained part is small, so one reduction after the
    last micro-batch is enough, and the model needs no wrapper."""
    if accelerator.num_processes > 1:
        gradients = [
            weight.grad for weight in weights.values() if weight.grad is not None
        ]  # the loss may not use all
        total = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _plain(state: dict) -> dict:
    """A scheduler's state as JSON can hold it, which no later step changes."""
    return copy.deepcopy(
        {key: [{}] * len(value) if key == "lr_lambdas" else value for key, value in state.items()}
    )
