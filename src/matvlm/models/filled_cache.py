"""A cache of fixed capacity whose prompt pass costs what the prompt's length does.

transformers' static cache shows attention all its capacity and a mask to hide what is empty, which costs time and
keeps flash attention out. Here attention sees what is filled, in place, so the cache cannot be traced into a
graph; `matvlm.generation.fused` reads its tensors itself.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionLayer,
    StaticLayer,
)

from matvlm.models.hybrid import ATTENTION, COUNTING, MAMBA, layer_kinds


class FilledLayer(StaticLayer):
    """Keys and values (b, kv_heads, capacity, head_dim), of which ``length`` positions are filled."""

    is_compileable = False

    def __init__(self, max_cache_len: int, **kwargs) -> None:
        super().__init__(max_cache_len, **kwargs)
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Enter new positions; all that is filled, (b, kv_heads, length, head_dim) each.

        Raises:
            ValueError: they are more than there is room for.
        """
        start, end = self.length, self.length + key_states.shape[-2]
        if end > self.max_cache_len:
            raise ValueError(f"{end} positions exceed the cache's capacity of {self.max_cache_len}")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.length = end
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def reset(self) -> None:
        self.length = 0


class FilledCountingLayer(FilledLayer, LinearAttentionAndStaticFullAttentionLayer):
    """State of a Mamba-2 layer, and marks for the positions that no attention layer counts."""

    def __init__(self, max_cache_len: int, **kwargs) -> None:
        LinearAttentionAndStaticFullAttentionLayer.__init__(self, max_cache_len, **kwargs)
        self.length = 0

    def lazy_initialization(self, *args, **kwargs) -> None:
        LinearAttentionAndStaticFullAttentionLayer.lazy_initialization(self, *args, **kwargs)

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        FilledLayer.reset(self)


def filled_cache(config: PreTrainedConfig, capacity: int) -> Cache:
    """An empty cache for ``capacity`` positions of a language model with this configuration."""
    made = {
        ATTENTION: lambda: FilledLayer(capacity),
        MAMBA: LinearAttentionLayer,
        COUNTING: lambda: FilledCountingLayer(capacity),
    }
    return Cache(layers=[made[kind]() for kind in layer_kinds(config)])
