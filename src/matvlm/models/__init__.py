"""The models of our own; importing this registers them with transformers' Auto classes."""

from matvlm.models.hybrid_llama import HybridLlamaConfig, HybridLlamaForCausalLM, HybridLlamaModel
from matvlm.models.hybrid_phi import HybridPhiConfig, HybridPhiForCausalLM, HybridPhiModel
from matvlm.models.llava import LlavaHeadBiasConfig, LlavaHeadBiasForConditionalGeneration

HYBRIDS = {kind.stock_type: kind for kind in (HybridPhiConfig, HybridLlamaConfig)}
"""Configurations of hybrids by the ``model_type`` of the language model that they are made of."""

__all__ = [
    "HYBRIDS",
    "HybridLlamaConfig",
    "HybridLlamaForCausalLM",
    "HybridLlamaModel",
    "HybridPhiConfig",
    "HybridPhiForCausalLM",
    "HybridPhiModel",
    "LlavaHeadBiasConfig",
    "LlavaHeadBiasForConditionalGeneration",
]
