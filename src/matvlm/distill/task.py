"""Distillation as a task for the training loop: which weights are trained, and the losses of a batch."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from matvlm.config import Distillation
from matvlm.data.dataset import InMemoryDataset
from matvlm.data.render import IGNORE
from matvlm.distill import losses
from matvlm.distill.forward import Needs, points_of
from matvlm.distill.gradients import settle
from matvlm.distill.head import head_sums
from matvlm.distill.recompute import checkpointed
from matvlm.distill.targets import Online, Source, Targets
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

    def needs(self, layers: list[int]) -> Needs:
        """What it needs of the teacher, where ``layers`` are replaced."""
        return Needs(points_of(layers) if "layer" in self.terms else (), "prob" in self.terms)


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


def compile_layers(text: nn.Module, gradient_checkpointing: bool = False) -> None:
    """Compile what a language model's attention layers compute, but not their calls: hooks stay outside, so that
    all layers share one graph. Mixers have kernels of their own.

    Args:
        gradient_checkpointing: whether the layers keep no more than `matvlm.distill.recompute` says; their calls
            then have no checkpoints of their own.
    """
    for layer in text.layers:
        if not hasattr(layer, "mamba"):
            forward = checkpointed(layer.forward) if gradient_checkpointing else layer.forward
            layer.forward = torch.compile(forward)
            layer.gradient_checkpointing = False


class DistillTask:
    """See `matvlm.training.loop.Task`.

    Args:
        student: on its device, trainable part selected. source: the teacher's targets for ``data``.
        validation: rows to validate on, and the teacher for them, which is not needed afterwards.
    """

    def __init__(
        self,
        student: LlavaForConditionalGeneration,
        data: InMemoryDataset,
        source: Source,
        objective: Objective,
        validation: tuple[InMemoryDataset, Online],
    ) -> None:
        self.model: nn.Module = student
        self.data, self.source, self.objective = data, source, objective
        self.device = student.device
        self.sharded = objective.settings.shard_frozen
        self.layers = student.config.text_config.mamba_layers
        self.needs = objective.needs(self.layers)
        settings = objective.settings
        self.divergence = losses.release_prob if settings.reduction == "release" else losses.prob_divergence
        text = student.model.language_model
        if settings.gradient_checkpointing:
            text.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            text.disable_input_require_grads()  # which it turns on; the embeddings learn nothing
        if settings.compile:
            compile_layers(text, settings.gradient_checkpointing)
            self.divergence = torch.compile(self.divergence)
        rows = np.arange(min(len(validation[0]), settings.validation_rows))
        size = min(VALIDATION_BATCH, settings.micro_batch_size)
        self.validation = [
            self._validation_batch(*validation, part) for part in np.array_split(rows, -(-len(rows) // size))
        ]
        self._train()

    def batch(self, rows: np.ndarray, step: int) -> dict[str, Any]:
        batch = self.data.batch(rows, self.device)
        return {**batch, "targets": self.source(rows, batch, self.needs)}

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        answers = float((batch["labels"][:, 1:] != IGNORE).sum())
        return {"tokens": float(batch["tokens"]), "answers": answers, "micro_batches": 1.0}

    def losses(self, batch: dict[str, Any], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        named = self._named(batch, counts, self.objective.terms)
        weights = self.objective.settings.weights
        loss = sum(getattr(weights, name.removeprefix("loss_")) * value for name, value in named.items())
        return loss, named

    def gradient_norms(self, rows: np.ndarray) -> dict[str, float]:
        """Norm of each term's own gradient over all that is trained, for ``rows`` and unit weights; the ratio
        of these norms, not the weights alone, says how much a term counts."""
        batch = self.batch(rows, 0)
        counts = self.counts(batch)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        norms = {}
        for term in sorted(self.objective.terms):
            (value,) = self._named(batch, counts, {term}).values()
            gradients = torch.autograd.grad(value, trained, allow_unused=True)
            squares = [g.float().square().sum() for g in gradients if g is not None]
            norms[term] = float(torch.stack(squares).sum().sqrt())
        return norms

    def _named(self, batch: dict[str, Any], counts: dict[str, float], terms: Set[str]) -> dict[str, Tensor]:
        """The micro-batch's share of each of ``terms``, as `loss_prob`."""
        targets: Targets = batch["targets"]()
        named: dict[str, Tensor] = {}
        if "layer" in terms:
            named["loss_layer"] = self._layer(targets.states, batch, counts)
        targets.states = {}  # gigabytes, which the student's own pass may have
        if terms & {"prob", "ce"}:
            named |= self._from_head(targets, batch, counts, terms)
        return named

    def _from_head(
        self, targets: Targets, batch: dict[str, Any], counts: dict[str, float], terms: Set[str]
    ) -> dict[str, Tensor]:
        """L_prob and L_ce, from the positions that they use."""
        settings, kind = self.objective.settings, self.objective.divergence
        release = settings.reduction == "release"
        index, labels = _positions(batch, every="prob" in terms, padding=release)
        embeds = embed(self.model, batch["input_ids"], targets.vision)
        hidden = language_pass(self.model, embeds).flatten(0, 1).index_select(0, index)  # (n, d)

        def divergence(logits: Tensor, part: slice) -> Tensor:
            return self.divergence(logits, targets.scores(index[part]), kind, settings.temperature)

        prob, ce = head_sums(
            hidden,
            self.model.lm_head,
            settings.head_chunk,
            divergence if "prob" in terms else None,
            labels if "ce" in terms else None,
        )
        if release:
            prob = losses.release_total(prob, kind, len(batch["input_ids"]), len(index)) / counts["micro_batches"]
            ce = ce / max(len(labels), 1) / counts["micro_batches"]
        else:
            prob, ce = prob / counts["tokens"], ce / counts["answers"]
        return {f"loss_{name}": value for name, value in (("prob", prob), ("ce", ce)) if name in terms}

    def _layer(self, states: dict[int, Tensor], batch: dict[str, Any], counts: dict[str, float]) -> Tensor:
        """Each Mamba-2 layer is fed the teacher's state at its input, so that no error of the layers before
        reaches it; norm and MLP need no gradient there, since neither they nor their input are trained.

        The release compares the last layer after the final LayerNorm, which is frozen: the teacher's. A layer's
        gradients are taken at once, so that the activations of one layer are held at a time.
        """
        settings, mask = self.objective.settings, batch["attention_mask"]
        text = self.model.model.language_model
        total = torch.zeros((), device=self.device)
        for index in self.layers:
            layer = text.layers[index]
            # Not a call of the layer: that would keep gradient checkpoints of what is used right away.
            output = layer.forward(states[index].to(layer.input_layernorm.weight.dtype))
            target = states[index + 1]
            if settings.reduction == "release":
                if index == len(text.layers) - 1:
                    output, target = text.final_norm(output), text.final_norm(target)
                value = losses.release_layer(output, target, settings.layer_divergence) / counts["micro_batches"]
            else:
                each = losses.layer_divergence(output, target, settings.layer_divergence)
                value = (each * mask).sum() / counts["tokens"]
            total = total + settle(value, [w for w in layer.parameters() if w.requires_grad])
        return total

    @torch.no_grad()
    def _validation_batch(self, data: InMemoryDataset, teacher: Online, rows: np.ndarray) -> dict[str, Any]:
        """What validation needs of a batch: of the teacher its last states at the answers alone."""
        batch = data.batch(rows, self.device)
        targets = teacher(rows, batch, Needs(scores=True))()
        index, labels = _positions(batch, every=False)
        found = {"input_ids": batch["input_ids"], "vision": targets.vision, "scores": targets.scores.at(index)}
        return {**found, "index": index, "labels": labels}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """KL(teacher || student) and cross-entropy per answer token, whatever the cell's own losses are."""
        self.model.eval()
        kl = ce = count = 0.0
        for batch in self.validation:
            embeds = embed(self.model, batch["input_ids"], batch["vision"])
            hidden = language_pass(self.model, embeds).flatten(0, 1).index_select(0, batch["index"])
            places = torch.arange(len(hidden), device=self.device)

            def divergence(logits: Tensor, part: slice, scores=batch["scores"], places=places) -> Tensor:
                return losses.prob_divergence(logits, scores(places[part]), "kl")

            size = self.objective.settings.head_chunk
            sums = head_sums(hidden, self.model.lm_head, size, divergence, batch["labels"])
            kl, ce = kl + float(sums[0]), ce + float(sums[1])
            count += len(hidden)
        self._train()
        return {"val_kl": kl / count, "val_ce": ce / count}

    def _train(self) -> None:
        """Dropout for what is trained; the frozen tower sees what the teacher's sees."""
        self.model.train()
        self.model.model.vision_tower.eval()


def _positions(batch: dict[str, Any], every: bool, padding: bool = False) -> tuple[Tensor, Tensor]:
    """Positions that the head is needed at, of all b l ones in a row, those first that predict an answer token.

    Args:
        every: all real positions; else only those that predict an answer token. padding: and what is not real too.

    Returns:
        Positions (n,), and the tokens (a,) that the first a of them predict.
    """
    following = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE).flatten()
    answers = following != IGNORE
    first = answers.nonzero()[:, 0]
    labels = following[first]
    if not every:
        return first, labels
    real = torch.ones_like(answers) if padding else batch["attention_mask"].flatten().bool()
    return torch.cat([first, (real & ~answers).nonzero()[:, 0]]), labels
