"""Training the embedded teacher on answers, as a task for the training loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from matvlm.config import AnswerTraining
from matvlm.data.dataset import DROP_CAPTION, InMemoryDataset
from matvlm.data.render import IGNORE
from matvlm.distill.losses import cross_entropy
from matvlm.models.forward import embed, language_pass, vision_features
from matvlm.training.order import Order

FLIP = 0.5
"""Share of easy-VQA's images that are mirrored; no question of it asks for a side."""
SHIFT = 4
"""Pixels that easy-VQA's images are shifted by at most, along each axis; no question of it asks for a place."""
VALIDATION_BATCH = 256


class TeacherTask:
    """See `matvlm.training.loop.Task`.

    Each conversation comes with its questions in a new order and often without its caption, so that a
    question asked alone, as in the benchmarks, is nothing new.

    Args:
        model: on its device. data: conversations to learn from.
        questions: by benchmark, questions asked one by one; their accuracy is printed at each validation.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        data: InMemoryDataset,
        questions: dict[str, InMemoryDataset],
        settings: AnswerTraining,
    ) -> None:
        self.model: nn.Module = model.train()
        self.device = model.device
        self.data, self.questions, self.settings = data.to(self.device), questions, settings
        if settings.compile:
            # The layers share one graph, of any batch size and length. The tower, a twentieth of the work, records
            # its states by hooks, which would be compiled anew at each step.
            for layer in model.model.language_model.layers:
                layer.compile(dynamic=True)

    def batch(self, rows: np.ndarray, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.settings.seed, step, int(rows[0])])
        return self.data.batch(
            rows,
            self.device,
            rng,
            shuffle_turns=True,
            drop_caption=DROP_CAPTION,
            flip=FLIP,
            shift=SHIFT,
        )

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        return {"tokens": float(batch["tokens"]), "answers": float(batch["answers"])}

    def losses(self, batch: dict[str, Any], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        logits, labels, _ = _answers(self.model, batch)
        loss = cross_entropy(logits, labels).sum() / counts["answers"]
        return loss, {"loss_ce": loss}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy per answer token of questions asked one by one; the accuracies go to stderr."""
        self.model.eval()
        total = answers = 0.0
        shares = []
        for name, data in self.questions.items():
            right = 0
            for rows in np.array_split(np.arange(len(data)), -(-len(data) // VALIDATION_BATCH)):
                batch = data.batch(rows, self.device)
                logits, labels, places = _answers(self.model, batch)
                total += float(cross_entropy(logits, labels).sum())
                right += len(rows) - len(places[logits.argmax(-1) != labels].unique())
                answers += batch["answers"]
            shares.append(f"{name} {right / len(data):.4f}")
        print(f"validation: {', '.join(shares)}", file=sys.stderr)
        self.model.train()
        return {"val_ce": total / answers}


def mixed_order(data: InMemoryDataset, settings: AnswerTraining) -> Callable[[int], np.ndarray]:
    """Rows of each step, ``easy_vqa_share`` of them from easy-VQA where both sources are there."""
    easy, clevr = np.flatnonzero(data.flippable), np.flatnonzero(~data.flippable)
    if not len(easy) or not len(clevr):
        return Order(np.arange(len(data)), settings.batch_size, settings.seed)
    share = round(settings.batch_size * settings.easy_vqa_share)
    parts = [
        Order(rows, size, settings.seed)
        for rows, size in ((easy, share), (clevr, settings.batch_size - share))
        if size
    ]
    # Interleaved, so that each micro-batch has its share of both.
    mixing = np.random.default_rng(settings.seed).permutation(settings.batch_size)
    return lambda step: np.concatenate([part(step) for part in parts])[mixing]


def _answers(model: LlavaForConditionalGeneration, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (a, v) at the positions that predict an answer token, those tokens (a,), and the rows (a,) that they
    are in. The head is applied to these alone: a vocabulary may be large, and answers are few."""
    embeds = embed(model, batch["input_ids"], vision_features(model, batch["pixel_values"]))
    following = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE)
    row, place = (following != IGNORE).nonzero(as_tuple=True)
    return model.lm_head(language_pass(model, embeds)[row, place]), following[row, place], row
