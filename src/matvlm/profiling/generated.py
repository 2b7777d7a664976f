"""Rates of transformers' `generate` itself, with all of its bookkeeping: what a user who calls it sees.

A generation runs twice over the same lengths. The first one can cost far more: PyTorch's scaled dot-product
attention runs on cuDNN on recent GPUs, which plans anew for each length that it has not met, at each token. Later
ones find the plans made.
"""

from __future__ import annotations

import contextlib
import statistics

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, StoppingCriteria
from transformers.utils import is_flash_attn_2_available

from matvlm.config import Profile
from matvlm.profiling.measure import Clock, Fused, Inputs, Plain, Runtime, fill


class Marking(StoppingCriteria):
    """Never stops; marks a clock when it is asked, after each token."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        """None of the sequences is done, (b,)."""
        self.clock.mark()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def time_generate(runtime: Runtime, inputs: Inputs, settings: Profile) -> tuple[float, float]:
    """Median seconds of the last ``decode_steps`` tokens of a `generate` whose cache was filled up before: of the
    first one, and of one that follows."""
    steps = settings.warmup_steps + settings.decode_steps
    ids = torch.cat([inputs.prompt, inputs.following], 1)
    length = ids.shape[1] - steps - 1
    found = []
    for _ in range(2):
        runtime.prompt_pass(inputs.prompt, inputs.pixels)
        fill(runtime.cache, length)
        # All that is in the cache counts as prompt; the token after it is the first that goes through the model.
        given = {"input_ids": ids[:, : length + 1], "past_key_values": runtime.cache}
        found.append(_last(runtime, given, steps + 1, settings))
    return found[0], found[1]


def time_generated(runtime: Runtime, inputs: Inputs, settings: Profile) -> float:
    """The same of a context that is truly generated, token by token."""
    if isinstance(runtime, Fused):
        runtime.decoder.reset()
    given = {"input_ids": inputs.prompt, "pixel_values": inputs.pixels}
    if isinstance(runtime, Fused):
        given["past_key_values"] = runtime.cache
    return _last(runtime, given, inputs.following.shape[1], settings)


def _last(runtime: Runtime, given: dict, count: int, settings: Profile) -> float:
    clock = Clock(runtime.model.device)
    with runtime.decoder.active() if isinstance(runtime, Fused) else contextlib.nullcontext():
        runtime.model.generate(
            **given,
            attention_mask=torch.ones_like(given["input_ids"]),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[Marking(clock)],
        )
    return statistics.median(clock.seconds()[-settings.decode_steps :])


def plain_generate(model: LlavaForConditionalGeneration, attention: str) -> type[Plain] | str:
    """The runtime of a model with an attention implementation, or why it cannot run."""
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        return f"{attention}: the package flash-attn is not installed"
    model.set_attn_implementation(attention)
    return Plain
