"""The models of our own; importing this registers them with transformers' Auto classes."""

from matvlm.models.hybrid_phi import HybridPhiConfig, HybridPhiForCausalLM, HybridPhiModel
from matvlm.models.llava import LlavaHeadBiasConfig, LlavaHeadBiasForConditionalGeneration

__all__ = [
    "HybridPhiConfig",
    "HybridPhiForCausalLM",
    "HybridPhiModel",
    "LlavaHeadBiasConfig",
    "LlavaHeadBiasForConditionalGeneration",
]
