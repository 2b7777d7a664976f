"""One pass through the teacher from prepared inputs, of what the losses need of it and no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from matvlm.models.forward import embed, language_pass, vision_features


@dataclass(frozen=True)
class Needs:
    """What losses need of a teacher: its residual stream at ``points``, of which i is the input of layer i and the
    last one its output, and whether its next-token distributions."""

    points: tuple[int, ...] = ()
    scores: bool = False


def points_of(layers: Iterable[int]) -> tuple[int, ...]:
    """Points at the inputs and outputs of ``layers``, ascending."""
    return tuple(sorted({point for index in layers for point in (index, index + 1)}))


@dataclass
class TeacherPass:
    """What a teacher says of a batch.

    ``vision``: the tower's features (images, image tokens, vision width). ``states``: by point the residual stream
    (b, l, d), before the final LayerNorm at the last layer too. ``hidden``: last states (b, l, d) after it, which
    the head makes logits of; none where no scores were asked for."""

    vision: Tensor
    states: dict[int, Tensor]
    hidden: Tensor | None


@torch.no_grad()
def teacher_pass(model: LlavaForConditionalGeneration, batch: dict[str, Tensor], needs: Needs) -> TeacherPass:
    """Run the teacher over a right-padded batch of `input_ids` and `pixel_values`, as far as ``needs`` go: where
    no scores are needed, up to the last point, and where nothing is, only the vision tower."""
    vision = vision_features(model, batch["pixel_values"])
    if not needs.scores and not needs.points:
        return TeacherPass(vision, {}, None)
    embeds = embed(model, batch["input_ids"], vision)
    states = {0: embeds} if 0 in needs.points else {}
    text = model.model.language_model

    def keep(point: int, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        states[point] = output

    handles = [
        text.layers[point - 1].register_forward_hook(partial(keep, point)) for point in needs.points if point
    ]
    try:
        with _first_layers(text, len(text.layers) if needs.scores else max(needs.points)):
            hidden = language_pass(model, embeds)
    finally:
        for handle in handles:
            handle.remove()
    return TeacherPass(vision, states, hidden if needs.scores else None)


@contextmanager
def _first_layers(text: nn.Module, count: int) -> Iterator[None]:
    """Let a language model have its first ``count`` layers alone."""
    layers = text.layers
    text.layers = layers[:count]
    try:
        yield
    finally:
        text.layers = layers
