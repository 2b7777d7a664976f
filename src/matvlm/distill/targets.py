"""Where a batch's teacher targets come from: a cache on disk, or the teacher itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from matvlm.distill.cache import CacheReader
from matvlm.distill.forward import teacher_pass
from matvlm.distill.losses import TopK
from matvlm.errors import UserError


@dataclass
class Targets:
    """The teacher's part of a micro-batch: its logits (b, l, v) or their top k, its residual stream at the
    points asked for, by point (b, l, d), and the tower's features."""

    teacher: Tensor | TopK
    states: dict[int, Tensor]
    vision: Tensor


class Source(Protocol):
    def __call__(self, rows: np.ndarray, batch: dict[str, Tensor], points: list[int]) -> Targets:
        """Targets of ``rows``, whose inputs are ``batch``; point i is the input of layer i."""


class Online:
    """Runs the teacher beside the student."""

    def __init__(self, teacher: LlavaForConditionalGeneration) -> None:
        self.model = teacher.eval().requires_grad_(False)

    def __call__(self, rows: np.ndarray, batch: dict[str, Tensor], points: list[int]) -> Targets:
        passed = teacher_pass(self.model, batch)
        return Targets(passed.logits, {point: passed.states[point] for point in points}, passed.vision)


class Cached:
    """Reads what `cache_teacher` wrote."""

    def __init__(self, reader: CacheReader, device: torch.device) -> None:
        self.reader, self.device = reader, device

    def __call__(self, rows: np.ndarray, batch: dict[str, Tensor], points: list[int]) -> Targets:
        for row, length in zip(rows, batch["lengths"], strict=True):
            if not 0 <= row < len(self.reader) or self.reader.lengths[row] != length:
                held = self.reader.lengths[row] if 0 <= row < len(self.reader) else 0
                raise UserError(
                    f"{self.reader.folder}: holds {held} positions of conversation {row}, which has {length}; "
                    "make the cache again"
                )
        found = self.reader.read(rows, points, batch["input_ids"].shape[1], self.device)
        states = dict(zip(points, found["states"], strict=True)) if points else {}
        return Targets(found["teacher"], states, found["vision"])
