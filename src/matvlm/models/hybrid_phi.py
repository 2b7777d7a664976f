"""Phi in which some decoder layers have a Mamba-2 mixer in place of attention; see `matvlm.models.hybrid`."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers import PhiConfig
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.phi.modeling_phi import (
    PhiAttention,
    PhiDecoderLayer,
    PhiForCausalLM,
    PhiMLP,
    PhiModel,
    PhiPreTrainedModel,
)
from transformers.utils.output_capturing import OutputRecorder

from matvlm.models.hybrid import HybridConfig, HybridPreTrainedModel, HybridTextModel, make_mixer, register


class HybridPhiConfig(HybridConfig, PhiConfig):
    """Configuration of a Phi language model with Mamba-2 layers."""

    model_type = "hybrid_phi"
    stock_type = PhiConfig.model_type


class HybridPhiMambaLayer(GradientCheckpointingLayer):
    """A replaced decoder layer: ``y = x + mamba(LN x) + mlp(LN x)``."""

    def __init__(self, config: HybridPhiConfig, layer_idx: int) -> None:
        super().__init__()
        self.mamba = make_mixer(config, layer_idx)
        self.mlp = PhiMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> Tensor:
        """hidden_states: (b, l, hidden_size); attention_mask: (b, l) padding mask, or none."""
        normed = self.input_layernorm(hidden_states)
        mixed = self.resid_dropout(self.mamba(normed, attention_mask, past_key_values))
        return mixed + self.resid_dropout(self.mlp(normed)) + hidden_states


class HybridPhiPreTrainedModel(HybridPreTrainedModel, PhiPreTrainedModel):
    config: HybridPhiConfig
    config_class = HybridPhiConfig
    _no_split_modules: ClassVar = ["PhiDecoderLayer", "HybridPhiMambaLayer"]
    _can_record_outputs: ClassVar = {
        "hidden_states": [OutputRecorder(PhiDecoderLayer), OutputRecorder(HybridPhiMambaLayer)],
        "attentions": OutputRecorder(PhiAttention, index=1),
    }


class HybridPhiModel(HybridTextModel, HybridPhiPreTrainedModel, PhiModel):
    mamba_layer = HybridPhiMambaLayer

    def embedded(self, inputs_embeds: Tensor) -> Tensor:
        return self.embed_dropout(inputs_embeds)

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        return self.final_layernorm(hidden_states)


class HybridPhiForCausalLM(HybridPhiPreTrainedModel, PhiForCausalLM):
    def __init__(self, config: HybridPhiConfig) -> None:
        HybridPhiPreTrainedModel.__init__(self, config)
        self.model = HybridPhiModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.post_init()


register(HybridPhiConfig, HybridPhiModel, HybridPhiForCausalLM)
