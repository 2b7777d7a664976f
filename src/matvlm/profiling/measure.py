"""One measured point: how fast and how large a model is at given prompt and context lengths, in one runtime.

A long context is not generated token by token before it is measured. The prompt with its image goes through in
one pass, which is timed; then the cache is filled up with random keys and values. What a step costs depends on how
much the cache holds, not on what.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.cache_utils import Cache, CacheLayerMixin

from matvlm.config import Profile
from matvlm.errors import UserError
from matvlm.models.forward import vision_features
from matvlm.profiling.memory import measure_peak
from matvlm.profiling.points import FUSED, Point

PASSES = 3
"""Times that a prompt goes through after the first."""
MEMORY_STEPS = 2
"""Steps at the end of the generation that the peak is looked for in."""


@dataclass(frozen=True)
class Inputs:
    """``prompt``: (b, prompt_tokens) ids, the image's first; ``pixels``: (b, 3, S, S);
    ``following``: (b, generated_tokens) random ids."""

    prompt: Tensor
    pixels: Tensor
    following: Tensor


class Plain:
    """transformers' forward and its own cache, greedy: the loop of `generate` without its bookkeeping."""

    name = "transformers"

    def __init__(self, model: LlavaForConditionalGeneration, point: Point) -> None:
        self.model = model
        self.cache: Cache | None = None
        self._token: Tensor | None = None

    @torch.no_grad()
    def prompt_pass(self, ids: Tensor, pixels: Tensor) -> None:
        """Begin with a prompt."""
        out = self.model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
        self.cache, self._token = out.past_key_values, out.logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def step(self) -> None:
        """Generate the next token."""
        out = self.model(input_ids=self._token, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self._token = out.logits[:, -1:].argmax(-1)


class Fused:
    """`matvlm.generation.fused`: the same for every model, few launches in a CUDA graph."""

    name = FUSED

    def __init__(self, model: LlavaForConditionalGeneration, point: Point) -> None:
        from matvlm.generation.fused import FusedDecoder

        self.model = model
        self.decoder = FusedDecoder(model, point.batch, point.context)
        self.cache = self.decoder.cache

    @torch.no_grad()
    def prompt_pass(self, ids: Tensor, pixels: Tensor) -> None:
        """Begin with a prompt."""
        self.decoder.reset()
        self.decoder.begin(None)
        out = self.model(
            input_ids=ids, pixel_values=pixels, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.decoder.token.copy_(out.logits[:, -1].argmax(-1))

    def step(self) -> None:
        """Generate the next token."""
        self.decoder.step()


Runtime = Plain | Fused


class Clock:
    """Notes moments of a device's work without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list = []

    def mark(self) -> None:
        """Note when the device has done what it was asked so far."""
        if self.device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between one mark and the next, once the device is done."""
        if self.device.type != "cuda":
            return [b - a for a, b in pairwise(self._marks)]
        torch.cuda.synchronize(self.device)
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(self._marks)]


def check_points(model: LlavaForConditionalGeneration, settings: Profile) -> None:
    """Raises UserError where the model or the settings do not allow a point, before anything is measured."""
    longest = model.config.text_config.max_position_embeddings
    if found := settings.problem(count_image_tokens(model), longest):
        raise UserError(f"profile.{found[0]}: {found[1]}")


def time_prompt(runtime: Runtime, inputs: Inputs) -> float:
    """Median seconds of the pass over the prompt with its image, once the process has set itself up."""
    return _median_pass(runtime, inputs.prompt, inputs.pixels)


def time_context(runtime: Runtime, inputs: Inputs) -> float | None:
    """As `time_prompt`, of a prompt as long as the whole context; none where memory does not suffice."""
    try:
        return _median_pass(runtime, torch.cat([inputs.prompt, inputs.following], 1), inputs.pixels)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def time_steps(runtime: Runtime, inputs: Inputs, settings: Profile) -> float:
    """Median seconds of the last ``decode_steps`` steps of the generation, after ``warmup_steps`` others."""
    steps = settings.warmup_steps + settings.decode_steps
    runtime.prompt_pass(inputs.prompt, inputs.pixels)
    fill(runtime.cache, inputs.prompt.shape[1] + inputs.following.shape[1] - steps)
    return statistics.median(time_each(runtime.step, steps, runtime.model.device)[settings.warmup_steps :])


def time_each(step: Callable[[], None], count: int, device: torch.device) -> list[float]:
    """Seconds from the end of each of ``count`` steps to that of the next, the first from its own beginning."""
    clock = Clock(device)
    clock.mark()
    for _ in range(count):
        step()
        clock.mark()
    return clock.seconds()


def measure_memory(
    make: Callable[[LlavaForConditionalGeneration, Point], Runtime],
    model: LlavaForConditionalGeneration,
    point: Point,
) -> dict[str, int | None]:
    """What `measure_peak` finds over the prompt pass and the last steps of the generation, `weight_bytes`, and
    `cache_bytes` at the full context. Filling the cache between them is left out, for no generation does that."""
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with measure_peak(model.device, held=weights) as peak:
        inputs = make_inputs(model, point)
        with peak.window():
            runtime = make(model, point)
            runtime.prompt_pass(inputs.prompt, inputs.pixels)
        steps = min(MEMORY_STEPS, point.generated_tokens)
        fill(runtime.cache, point.context - steps)
        with peak.window():
            for _ in range(steps):
                runtime.step()
    return {**peak.figures(), "weight_bytes": weights, "cache_bytes": cache_bytes(runtime.cache)}


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
def fill(cache: Cache, length: int) -> None:
    """Random keys and values up to ``length`` positions; states stay what the prompt left."""
    for layer in cache.layers:
        if not isinstance(layer, CacheLayerMixin):
            continue
        missing = length - layer.get_seq_length()
        if hasattr(layer, "length"):  # a layer of fixed capacity
            held = (layer.keys[:, :, layer.length : length], layer.values[:, :, layer.length : length])
            layer.length = length
        else:
            batch, heads, _, width = layer.keys.shape
            held = tuple(layer.keys.new_empty(batch, heads, missing, width) for _ in range(2))
            layer.keys = torch.cat([layer.keys, held[0]], dim=2)
            layer.values = torch.cat([layer.values, held[1]], dim=2)
            held = (layer.keys[:, :, -missing:], layer.values[:, :, -missing:])
        for part in held if missing else ():
            part.normal_() if part.is_floating_point() else part.fill_(1)


def cache_bytes(cache: Cache) -> int:
    """Bytes of all keys, values and states in a cache."""
    total = 0
    for layer in cache.layers:
        for held in vars(layer).values():
            tensors = held.values() if isinstance(held, dict) else [held]
            total += sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))
    return total


def _median_pass(runtime: Runtime, ids: Tensor, pixels: Tensor) -> float:
    runtime.prompt_pass(ids, pixels)  # the first one of a shape pays for set-up
    seconds = []
    for _ in range(PASSES):
        start = _now(runtime.model.device)
        runtime.prompt_pass(ids, pixels)
        seconds.append(_now(runtime.model.device) - start)
    return statistics.median(seconds)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
