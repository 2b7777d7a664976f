"""The hybrid models; importing this registers them with transformers' Auto classes."""

from matvlm.models.hybrid_phi import HybridPhiConfig, HybridPhiForCausalLM, HybridPhiModel

__all__ = ["HybridPhiConfig", "HybridPhiForCausalLM", "HybridPhiModel"]
