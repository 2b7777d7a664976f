"""What a step and a model must cost at least: bytes over the bandwidth that copying reaches, and memory foreseen.

A step of decoding reads the language model's weights once, whatever the batch, and each sequence's keys, values
and states; it writes the states. Nothing else is counted, so no implementation can be faster.
"""

from __future__ import annotations

import statistics

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from matvlm.models.hybrid import ATTENTION, head_dim, layer_kinds
from matvlm.profiling.points import FUSED, Point

COPIED = 2**30
"""Bytes of the buffer whose copying is timed: far more than any cache of a processor."""
COPIES = 20


def copy_bandwidth(device: torch.device) -> float | None:
    """Bytes a second that the GPU reads and writes while it copies; none on a CPU, whose caches blur it."""
    if device.type != "cuda":
        return None
    source = torch.empty(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(COPIES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 2 * COPIED / statistics.median(seconds)


def step_bytes(model: LlavaForConditionalGeneration, point: Point) -> int:
    """Bytes that a step of all ``point.batch`` sequences must move at the full context."""
    language, head = model.model.language_model, model.lm_head
    weights = sum(weight.nbytes for module in (language, head) for weight in module.parameters())
    # Of the embedding a step reads one row; a head that shares it is counted in its own right.
    weights -= model.get_input_embeddings().weight.nbytes
    keys, states = _cache_bytes(model.config, point.context, model.dtype)
    return weights + point.batch * (keys + 2 * states)


def cache_bytes_of(config: LlavaConfig, tokens: int, batch: int, dtype: torch.dtype) -> int:
    """Bytes of all keys, values and states for ``batch`` sequences of ``tokens``."""
    return batch * sum(_cache_bytes(config, tokens, dtype))


def predict_memory(model: LlavaForConditionalGeneration, point: Point, runtime: str) -> int:
    """Peak that the allocator should reach in a runtime: weights, cache, and the larger of two working sets.

    The prompt's is the MLP's in one layer (input, three temporaries of its GELU, residual, norm and mixed), or in
    eager attention the scores, once masked, once in float32 and once cast back. A step's is its logits and, where
    the cache grows by copying, one layer's keys.
    """
    config, text, width = model.config, model.config.text_config, model.dtype.itemsize
    batch, prompt = point.batch, point.prompt_tokens
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    mlp = batch * prompt * width * (4 * text.intermediate_size + 3 * text.hidden_size)
    scores = batch * text.num_attention_heads * prompt**2 * (2 * width + 4)
    work = max(mlp, scores if runtime.endswith("eager") else 0)
    logits = batch * text.vocab_size * 4
    full = cache_bytes_of(config, point.context, batch, model.dtype)
    if runtime == FUSED:  # all of the cache is there from the beginning
        rotated = int(head_dim(text) * text.rope_parameters["partial_rotary_factor"])
        rotary = 2 * 4 * point.context * rotated
        return weights + full + max(work, 2 * logits) + rotary
    kinds = layer_kinds(text)
    keys = _cache_bytes(config, point.context, model.dtype)[0] // (2 * max(kinds.count(ATTENTION), 1))
    before = cache_bytes_of(config, prompt, batch, model.dtype)
    return weights + max(before + work, full + batch * keys + 2 * logits)


def _cache_bytes(config: LlavaConfig, tokens: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of a sequence's keys and values, and of its states: the convolution's in ``dtype``, else float32."""
    text = config.text_config
    kinds, width = layer_kinds(text), head_dim(text)
    kv, inner = text.num_key_value_heads * width, text.num_attention_heads * width
    attention = kinds.count(ATTENTION)
    taps = getattr(text, "mamba_conv_kernel", 0)
    state = (inner + 2 * kv) * taps * dtype.itemsize + 4 * inner * width
    return attention * 2 * kv * tokens * dtype.itemsize, (len(kinds) - attention) * state
