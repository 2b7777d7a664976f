"""One measured point: how fast and how large a model is at given prompt and context lengths.

Teacher and hybrids run through the same code: transformers' forward with its own caches, the greedy loop of
`generate` without its bookkeeping.

A long context is not generated token by token before it is measured. The prompt with its image goes through
in one pass, which is timed; the tokens between the prompt and the measured steps are drawn at random and
enter the same cache a few hundred at a time. What a step costs depends on how much the cache holds, not on
which tokens those were, and the cache is the one that single steps would have left, up to rounding.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.cache_utils import Cache

from matvlm.config import Profile
from matvlm.errors import UserError
from matvlm.models.forward import vision_features
from matvlm.profiling.memory import measure_peak
from matvlm.profiling.points import Point

FILL_CHUNK = 512
"""Tokens that enter the cache at once where it is only filled, so that this takes little memory."""
MEMORY_STEPS = 2
"""Steps at the end of the generation that the peak is looked for in."""


@dataclass(frozen=True)
class Inputs:
    """``prompt``: (b, prompt_tokens) ids, the image's first; ``pixels``: (b, 3, S, S);
    ``following``: (b, generated_tokens) random ids."""

    prompt: Tensor
    pixels: Tensor
    following: Tensor


def check_points(model: LlavaForConditionalGeneration, settings: Profile) -> None:
    """Raises UserError where the model or the settings do not allow a point, before anything is measured."""
    longest = model.config.text_config.max_position_embeddings
    if found := settings.problem(count_image_tokens(model), longest):
        raise UserError(f"profile.{found[0]}: {found[1]}")


def time_point(model: LlavaForConditionalGeneration, point: Point, settings: Profile) -> dict[str, float]:
    """What `time_generation` finds of ``model`` on its device, once the process has set itself up."""
    inputs = make_inputs(model, point)
    prompt_pass(model, inputs)  # the first pass of a process pays for set-up
    return time_generation(model, inputs, settings)


@torch.no_grad()
def time_generation(model: LlavaForConditionalGeneration, inputs: Inputs, settings: Profile) -> dict[str, float]:
    """One generation, whose last steps alone are timed.

    Returns:
        `prefill_s`, the prompt pass with its image; `decode_tokens_per_s`, all sequences together, from the median
        of the last ``decode_steps`` steps of the generation.
    """
    start = _now(model.device)
    cache, token = prompt_pass(model, inputs)
    prefill = _now(model.device) - start
    skipped = inputs.following.shape[1] - settings.warmup_steps - settings.decode_steps
    token = fill(model, cache, token, inputs.following[:, :skipped])
    seconds = []
    for _ in range(settings.warmup_steps + settings.decode_steps):
        start = _now(model.device)
        token = next_token(decode_step(model, cache, token))
        seconds.append(_now(model.device) - start)
    step = statistics.median(seconds[settings.warmup_steps :])
    return {"prefill_s": prefill, "decode_tokens_per_s": len(token) / step}


@torch.no_grad()
def measure_memory(model: LlavaForConditionalGeneration, point: Point) -> dict[str, int | None]:
    """What `measure_peak` finds over the prompt pass and the last steps of the generation, `weight_bytes`, and
    `cache_bytes` at the full context. Filling the cache between them is left out, for no generation does that."""
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with measure_peak(model.device, held=weights) as peak:
        inputs = make_inputs(model, point)
        with peak.window():
            cache, token = prompt_pass(model, inputs)
        skipped = max(point.generated_tokens - MEMORY_STEPS, 0)
        token = fill(model, cache, token, inputs.following[:, :skipped])
        with peak.window():
            for _ in range(point.generated_tokens - skipped):
                token = next_token(decode_step(model, cache, token))
    return {**peak.figures(), "weight_bytes": weights, "cache_bytes": cache_bytes(cache)}


def make_inputs(model: LlavaForConditionalGeneration, point: Point) -> Inputs:
    """A prompt of an image and random text, and random tokens to follow it; always the same."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    size, image = config.vision_config.image_size, config.image_token_id
    ids = torch.randint(config.text_config.vocab_size, (point.batch, point.context), generator=generator)
    ids[ids == image] = (image + 1) % config.text_config.vocab_size
    ids[:, : count_image_tokens(model)] = image
    pixels = torch.randn(point.batch, 3, size, size, generator=generator, dtype=torch.float32)
    prompt, following = ids.to(model.device).split([point.prompt_tokens, point.generated_tokens], dim=1)
    return Inputs(prompt, pixels.to(model.device, model.dtype), following)


@torch.no_grad()
def count_image_tokens(model: LlavaForConditionalGeneration) -> int:
    """Tokens that one image takes in the language model."""
    size = model.config.vision_config.image_size
    image = torch.zeros(1, 3, size, size, device=model.device, dtype=model.dtype)
    return vision_features(model, image).shape[1]


@torch.no_grad()
def prompt_pass(model: LlavaForConditionalGeneration, inputs: Inputs) -> tuple[Cache, Tensor]:
    """The cache after the prompt, and the first generated token (b, 1)."""
    out = model(input_ids=inputs.prompt, pixel_values=inputs.pixels, use_cache=True, logits_to_keep=1)
    return out.past_key_values, next_token(out.logits)


@torch.no_grad()
def fill(model: LlavaForConditionalGeneration, cache: Cache, token: Tensor, ids: Tensor) -> Tensor:
    """Put ids (b, n) into the cache; the token (b, 1) that follows them, or ``token`` where n is 0."""
    for part in ids.split(FILL_CHUNK, dim=1) if ids.shape[1] else ():
        token = next_token(decode_step(model, cache, part))
    return token


@torch.no_grad()
def decode_step(model: LlavaForConditionalGeneration, cache: Cache, ids: Tensor) -> Tensor:
    """Logits (b, 1, v) after ids (b, n), which enter the cache."""
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits


def next_token(logits: Tensor) -> Tensor:
    """The likeliest token (b, 1)."""
    return logits[:, -1:].argmax(-1)


def cache_bytes(cache: Cache) -> int:
    """Bytes of all keys, values and states in a cache."""
    total = 0
    for layer in cache.layers:
        for held in vars(layer).values():
            tensors = held.values() if isinstance(held, dict) else [held]
            total += sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))
    return total


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
