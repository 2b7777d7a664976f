"""LLaVA whose language head has a bias, as Phi's own has.

transformers' LLaVA gives every language model a head without one, and would leave a checkpoint's bias out with
no more than a warning. A model type of its own makes that impossible: whoever does not know it cannot load it.
"""

from __future__ import annotations

from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)


class LlavaHeadBiasConfig(LlavaConfig):
    """As `LlavaConfig`."""

    model_type = "llava_head_bias"


class LlavaHeadBiasForConditionalGeneration(LlavaForConditionalGeneration):
    """As transformers' LLaVA, with ``lm_head.bias`` (vocab_size)."""

    config: LlavaHeadBiasConfig
    config_class = LlavaHeadBiasConfig

    def __init__(self, config: LlavaHeadBiasConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=True)
        self.post_init()


CLASSES = {
    LlavaConfig.model_type: LlavaForConditionalGeneration,
    LlavaHeadBiasConfig.model_type: LlavaHeadBiasForConditionalGeneration,
}
"""Classes of teachers and students by the ``model_type`` of their configuration."""


def new_model(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """A model of this configuration with fresh weights."""
    return CLASSES[config.model_type](config)


AutoConfig.register(LlavaHeadBiasConfig.model_type, LlavaHeadBiasConfig)
AutoModelForImageTextToText.register(LlavaHeadBiasConfig, LlavaHeadBiasForConditionalGeneration)
# Its tensors have the same names on disk.
register_checkpoint_conversion_mapping(
    LlavaHeadBiasConfig.model_type, get_checkpoint_conversion_mapping(LlavaConfig.model_type), overwrite=True
)
