"""Llama in which some decoder layers have a Mamba-2 mixer in place of attention; see `matvlm.models.hybrid`.

TinyLlama and SmolLM2 are of this family.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
)
from transformers.utils.output_capturing import OutputRecorder

from matvlm.models.hybrid import HybridConfig, HybridPreTrainedModel, HybridTextModel, make_mixer, register


class HybridLlamaConfig(HybridConfig, LlamaConfig):
    """Configuration of a Llama language model with Mamba-2 layers."""

    model_type = "hybrid_llama"
    stock_type = LlamaConfig.model_type


class HybridLlamaMambaLayer(GradientCheckpointingLayer):
    """A replaced decoder layer: ``h = x + mamba(norm x); y = h + mlp(norm h)``, each with a norm of its own."""

    def __init__(self, config: HybridLlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.mamba = make_mixer(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> Tensor:
        """hidden_states: (b, l, hidden_size); attention_mask: (b, l) padding mask, or none."""
        mixed = self.mamba(self.input_layernorm(hidden_states), attention_mask, past_key_values)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class HybridLlamaPreTrainedModel(HybridPreTrainedModel, LlamaPreTrainedModel):
    config: HybridLlamaConfig
    config_class = HybridLlamaConfig
    _no_split_modules: ClassVar = ["LlamaDecoderLayer", "HybridLlamaMambaLayer"]
    _can_record_outputs: ClassVar = {
        "hidden_states": [OutputRecorder(LlamaDecoderLayer), OutputRecorder(HybridLlamaMambaLayer)],
        "attentions": OutputRecorder(LlamaAttention, index=1),
    }


class HybridLlamaModel(HybridTextModel, HybridLlamaPreTrainedModel, LlamaModel):
    mamba_layer = HybridLlamaMambaLayer

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        return self.norm(hidden_states)


class HybridLlamaForCausalLM(HybridLlamaPreTrainedModel, LlamaForCausalLM):
    def __init__(self, config: HybridLlamaConfig) -> None:
        HybridLlamaPreTrainedModel.__init__(self, config)
        self.model = HybridLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


register(HybridLlamaConfig, HybridLlamaModel, HybridLlamaForCausalLM)
