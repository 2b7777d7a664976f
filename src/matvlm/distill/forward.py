"""One pass through teacher or student from prepared inputs, with what the losses need of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration


@dataclass
class TeacherPass:
    """What the teacher says of a batch: ``logits`` (b, l, v), ``states`` (layers + 1, b, l, d): the residual
    stream before each layer and after the last one, before the final LayerNorm, and the tower's
    ``vision`` features (images, image tokens, vision width)."""

    logits: Tensor
    states: Tensor
    vision: Tensor


def vision_features(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """Features of the frozen tower that enter the connector: (images, image tokens, vision width)."""
    config = model.config
    hidden = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    features = hidden[config.vision_feature_layer]
    return features[:, 1:] if config.vision_feature_select_strategy == "default" else features


def embed(model: LlavaForConditionalGeneration, input_ids: Tensor, vision: Tensor) -> Tensor:
    """Inputs of the language model (b, l, d): token embeddings, with images through the connector."""
    embeds = model.get_input_embeddings()(input_ids)
    images = model.model.multi_modal_projector(vision).to(embeds.dtype)
    places = (input_ids == model.config.image_token_id)[..., None]
    return embeds.masked_scatter(places, images)


def language_pass(model: LlavaForConditionalGeneration, embeds: Tensor) -> Tensor:
    """Last hidden states (b, l, d), after the final LayerNorm.

    No padding mask: padding stands on the right, where no real position looks, and without a mask attention
    skips what is not causal.
    """
    return model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state


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
