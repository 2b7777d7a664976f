"""Timing the steps of the training loop itself, for `distill_step.py`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import Tensor

from matvlm.training.loop import Task


class Enough(Exception):
    """All steps that were to be timed are done."""


class Timed:
    """A task for `matvlm.training.loop.train` that notes when its steps begin, and ends the training after the
    first one and ``steps`` more. The loop waits for the device at each step's end, where it logs the loss.

    Attributes:
        starts: when each step began, in seconds of a clock; the last is the end of the step before.
    """

    def __init__(self, task: Task, steps: int) -> None:
        self.task, self.steps, self.model = task, steps, task.model
        self.sharded = False
        self.starts: list[float] = []

    def batch(self, rows: np.ndarray, step: int) -> dict[str, Any]:
        """As the task's, with its step."""
        return {**self.task.batch(rows, step), "step": step}

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        """As the task's; the first thing that the loop asks in a step."""
        if batch["step"] == len(self.starts):
            self.starts.append(time.perf_counter())
        if batch["step"] > self.steps:
            raise Enough
        return {"tokens": float(batch["tokens"]), **self.task.counts(batch)}

    def losses(self, batch: dict[str, Any], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """As the task's."""
        return self.task.losses(batch, counts)

    def validate(self) -> dict[str, float]:
        """Nothing: it is no part of a step."""
        return {}
