"""The forward pass of a LLaVA model in three parts, for what the library's own pass does not give: the tower
once, the embedding of what it saw, and the language model from there."""

from __future__ import annotations

from torch import Tensor
from transformers import LlavaForConditionalGeneration


def vision_features(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """Features of the frozen tower that enter the connector: (images, image tokens, vision width)."""
    config = model.config
    hidden = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    features = hidden[config.vision_feature_layer]
    return features[:, 1:] if config.vision_feature_select_strategy == "default" else features


def embed(model: LlavaForConditionalGeneration, input_ids: Tensor, vision: Tensor) -> Tensor:
    """Inputs of the language model (b, l, d): token embeddings, with images through the connector."""
    embeds = model.get_input_embeddings()(input_ids)
    connector = model.model.multi_modal_projector
    images = connector(vision.to(connector.linear_1.weight.dtype)).to(embeds.dtype)
    places = (input_ids == model.config.image_token_id)[..., None]
    return embeds.masked_scatter(places, images)


def language_pass(model: LlavaForConditionalGeneration, embeds: Tensor) -> Tensor:
    """Last hidden states (b, l, d), after the final LayerNorm.

    No padding mask: padding stands on the right, where no real position looks, and without a mask attention
    skips what is not causal.
    """
    return model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
