"""Where a batch's teacher targets come from: a cache on disk, or the teacher itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from matvlm.distill.cache.read import CacheReader
from matvlm.distill.forward import Needs, teacher_pass
from matvlm.distill.losses import TopK
from matvlm.errors import UserError
from matvlm.models.forward import vision_features


class Scores(Protocol):
    def __call__(self, index: Tensor) -> Tensor | TopK:
        """The teacher's logits (n, v), or their top k, at positions (n,) of all b l ones in a row."""


@dataclass(frozen=True)
class HiddenScores:
    """Logits made of last hidden states (n, d) when they are asked for."""

    hidden: Tensor
    head: nn.Linear

    @torch.no_grad()
    def __call__(self, index: Tensor) -> Tensor:
        return self.head(self.hidden[index])

    def at(self, index: Tensor) -> HiddenScores:
        """Of some positions alone, which are numbered anew."""
        return HiddenScores(self.hidden[index], self.head)


@dataclass
class Targets:
    """The teacher's part of a micro-batch: the tower's features, its residual stream by point (b, l, d), and its
    next-token distributions; what was not asked for is empty or none."""

    vision: Tensor
    states: dict[int, Tensor]
    scores: Scores | None


class Source(Protocol):
    def __call__(self, rows: np.ndarray, batch: dict[str, Tensor], needs: Needs) -> Callable[[], Targets]:
        """What makes the targets of ``rows``, whose inputs are ``batch``. Called ahead of time, in a thread: here
        belongs what is read from disk, while the result does what takes the device."""


class Online:
    """Runs the teacher beside the student."""

    def __init__(self, teacher: LlavaForConditionalGeneration) -> None:
        self.model = teacher.eval().requires_grad_(False)

    def __call__(self, rows: np.ndarray, batch: dict[str, Tensor], needs: Needs) -> Callable[[], Targets]:
        return partial(self._run, batch, needs)

    def _run(self, batch: dict[str, Tensor], needs: Needs) -> Targets:
        with evaluating(self.model):
            passed = teacher_pass(self.model, batch, needs)
        scores = HiddenScores(passed.hidden.flatten(0, 1), self.model.lm_head) if needs.scores else None
        return Targets(passed.vision, passed.states, scores)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, also in modules that a student which is in training has too."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Tower:
    """For losses that need no teacher: features of the student's vision tower, which is the teacher's."""

    def __init__(self, student: LlavaForConditionalGeneration) -> None:
        self.model = student

    def __call__(self, rows: np.ndarray, batch: dict[str, Tensor], needs: Needs) -> Callable[[], Targets]:
        if needs != Needs():
            raise ValueError("these losses need a teacher")
        return partial(self._run, batch)

    @torch.no_grad()
    def _run(self, batch: dict[str, Tensor]) -> Targets:
        return Targets(vision_features(self.model, batch["pixel_values"]), {}, None)


class Cached:
    """Reads what `cache_teacher` wrote."""

    def __init__(self, reader: CacheReader, device: torch.device) -> None:
        self.reader, self.device = reader, device

    def __call__(self, rows: np.ndarray, batch: dict[str, Tensor], needs: Needs) -> Callable[[], Targets]:
        for row, length in zip(rows, batch["lengths"], strict=True):
            if not 0 <= row < len(self.reader) or self.reader.lengths[row] != length:
                held = self.reader.lengths[row] if 0 <= row < len(self.reader) else 0
                raise UserError(
                    f"{self.reader.folder}: holds {held} positions of conversation {row}, which has {length}; "
                    "make the cache again"
                )
        found = self.reader.read(rows, needs, batch["input_ids"].shape[1], self.device)
        return partial(Targets, found["vision"], found["states"], found["scores"])
