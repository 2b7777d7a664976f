"""One pass through the teacher from prepared inputs, with what the losses need of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from matvlm.models.forward import embed, language_pass, vision_features


@dataclass
class TeacherPass:
    """What the teacher says of a batch: ``logits`` (b, l, v), ``states`` (layers + 1, b, l, d): the residual
    stream before each layer and after the last one, before the final LayerNorm, and the tower's
    ``vision`` features (images, image tokens, vision width)."""

    logits: Tensor
    states: Tensor
    vision: Tensor


@torch.no_grad()
def teacher_pass(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> TeacherPass:
    """Run the teacher over a right-padded batch of `input_ids` and `pixel_values`."""
    vision = vision_features(model, batch["pixel_values"])
    embeds = embed(model, batch["input_ids"], vision)
    outputs: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for layer in model.model.language_model.layers
    ]
    try:
        hidden = language_pass(model, embeds)
    finally:
        for handle in handles:
            handle.remove()
    return TeacherPass(model.lm_head(hidden), torch.stack([embeds, *outputs]), vision)
