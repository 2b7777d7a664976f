"""Distillation as a task for the training loop: which weights are trained, and the losses of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from matvlm.config import Distillation
from matvlm.data.dataset import InMemoryDataset
from matvlm.distill import losses
from matvlm.distill.targets import Online, Source
from matvlm.errors import UserError
from matvlm.models.forward import embed, language_pass

VALIDATION_BATCH = 16


@dataclass(frozen=True)
class Objective:
    """What a cell minimises. ``terms`` are among prob, layer and ce."""

    terms: frozenset[str]
    divergence: str
    settings: Distillation

    @classmethod
    def of(cls, loss: str, divergence: str, settings: Distillation) -> Objective:
        """From a cell's loss, as ``prob+layer``, and its divergence."""
        return cls(frozenset(loss.split("+")), divergence, settings)


def select_trainable(student: LlavaForConditionalGeneration) -> list[str]:
    """Let only the Mamba-2 mixers and the connector be trained.

    Returns:
        The names of what is trained, sorted.

    Raises:
        UserError: the model has no Mamba-2 layer.
    """
    student.requires_grad_(False)
    layers = student.config.text_config.mamba_layers
    if not layers:
        raise UserError("the student has no Mamba-2 layer to train")
    for index in layers:
        student.model.language_model.layers[index].mamba.requires_grad_(True)
    student.model.multi_modal_projector.requires_grad_(True)
    return sorted(name for name, weight in student.named_parameters() if weight.requires_grad)


class DistillTask:
    """See `matvlm.training.loop.Task`.

    Args:
        student: on its device, trainable part selected. source: the teacher's targets for ``data``.
        validation: rows to validate on, and the teacher for them.
    """

    def __init__(
        self,
        student: LlavaForConditionalGeneration,
        data: InMemoryDataset,
        source: Source,
        objective: Objective,
        validation: tuple[InMemoryDataset, Online],
    ) -> None:
        self.model: nn.Module = student.train()
        self.data, self.source, self.objective = data, source, objective
        self.device = student.device
        self.layers = student.config.text_config.mamba_layers
        self.points = sorted({p for i in self.layers for p in (i, i + 1)}) if "layer" in objective.terms else []
        rows = np.arange(min(len(validation[0]), objective.settings.validation_rows))
        self.validation = [
            self._validation_batch(*validation, part)
            for part in np.array_split(rows, -(-len(rows) // VALIDATION_BATCH))
        ]

    def batch(self, rows: np.ndarray, step: int) -> dict[str, Any]:
        batch = self.data.batch(rows, self.device)
        return {**batch, "targets": self.source(rows, batch, self.points)}

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        real = float(batch["attention_mask"].sum())
        answers = float((batch["labels"][:, 1:] != -100).sum())
        return {"tokens": real, "answers": answers, "micro_batches": 1.0}

    def losses(self, batch: dict[str, Any], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        terms, weights = self.objective.terms, self.objective.settings.weights
        named: dict[str, Tensor] = {}
        if terms & {"prob", "ce"}:
            embeds = embed(self.model, batch["input_ids"], batch["targets"].vision)
            logits = self.model.lm_head(language_pass(self.model, embeds))
            if "prob" in terms:
                named["loss_prob"] = self._prob(logits, batch, counts)
            if "ce" in terms:
                named["loss_ce"] = self._answers(logits, batch, counts)
        if "layer" in terms:
            named["loss_layer"] = self._layer(batch, counts)
        loss = sum(getattr(weights, name.removeprefix("loss_")) * value for name, value in named.items())
        return loss, named

    def gradient_norms(self, rows: np.ndarray) -> dict[str, float]:
        """Norm of each term's own gradient over all that is trained, for ``rows`` and unit weights; the ratio
        of these norms, not the weights alone, says how much a term counts."""
        batch = self.batch(rows, 0)
        _, named = self.losses(batch, self.counts(batch))
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        norms = {}
        for name, value in named.items():
            gradients = torch.autograd.grad(value, trained, retain_graph=True, allow_unused=True)
            squares = [g.square().sum() for g in gradients if g is not None]
            norms[name.removeprefix("loss_")] = float(torch.stack(squares).sum().sqrt())
        return norms

    def _prob(self, logits: Tensor, batch: dict[str, Any], counts: dict[str, float]) -> Tensor:
        settings, teacher = self.objective.settings, batch["targets"].teacher
        if settings.reduction == "release":
            value = losses.release_prob(logits, teacher, self.objective.divergence, settings.temperature)
            return value / counts["micro_batches"]
        each = losses.prob_divergence(logits, teacher, self.objective.divergence, settings.temperature)
        return (each * batch["attention_mask"]).sum() / counts["tokens"]

    def _answers(self, logits: Tensor, batch: dict[str, Any], counts: dict[str, float]) -> Tensor:
        total = losses.answer_cross_entropy(logits, batch["labels"])
        if self.objective.settings.reduction == "release":
            return total / max(self.counts(batch)["answers"], 1) / counts["micro_batches"]
        return total / counts["answers"]

    def _layer(self, batch: dict[str, Any], counts: dict[str, float]) -> Tensor:
        """Each Mamba-2 layer is fed the teacher's state at its input, so that no error of the layers before
        reaches it; norm and MLP need no gradient there, since neither they nor their input are trained.

        The release compares the last layer after the final LayerNorm, which is frozen: the teacher's.
        """
        settings, states, mask = self.objective.settings, batch["targets"].states, batch["attention_mask"]
        text = self.model.model.language_model
        total = torch.zeros((), device=self.device)
        for index in self.layers:
            output, target = text.layers[index](states[index]), states[index + 1]
            if settings.reduction == "release":
                if index == len(text.layers) - 1:
                    output, target = text.final_layernorm(output), text.final_layernorm(target)
                value = losses.release_layer(output, target, settings.layer_divergence)
                total = total + value / counts["micro_batches"]
            else:
                each = losses.layer_divergence(output, target, settings.layer_divergence)
                total = total + (each * mask).sum() / counts["tokens"]
        return total

    def _validation_batch(self, data: InMemoryDataset, teacher: Online, rows: np.ndarray) -> dict[str, Any]:
        batch = data.batch(rows, self.device)
        return {**batch, "targets": teacher(rows, batch, [])}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """KL(teacher || student) and cross-entropy per answer token, whatever the cell's own losses are."""
        self.model.eval()
        kl = ce = count = 0.0
        for batch in self.validation:
            embeds = embed(self.model, batch["input_ids"], batch["targets"].vision)
            logits = self.model.lm_head(language_pass(self.model, embeds))
            answers = batch["labels"][:, 1:] != -100
            each = losses.prob_divergence(logits[:, :-1], batch["targets"].teacher[:, :-1], "kl")
            kl += float((each * answers).sum())
            ce += float(losses.answer_cross_entropy(logits, batch["labels"]))
            count += float(answers.sum())
        self.model.train()
        return {"val_kl": kl / count, "val_ce": ce / count}
