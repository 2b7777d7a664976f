"""How models are scored, and what is measured of their speed and memory."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from matvlm.sections.ablation import Layout
from matvlm.validation import Axis, Distinct, Flag, Model, NonNegativeInt, PositiveInt, wrong

TASKS = ("easy_vqa_yesno", "easy_vqa_open", "sort_of_clevr_nonrelational", "sort_of_clevr_relational")


class Evaluation(Model):
    """Benchmarks, run through lmms-eval."""

    tasks: Axis[str] = TASKS
    """Names of lmms-eval tasks."""
    limit: PositiveInt | None = None
    """Questions of each task; null means all."""
    batch_size: PositiveInt = 64
    """Questions answered at a time."""
    max_new_tokens: PositiveInt = 4
    """Tokens that an answer may have."""


class Profile(Model):
    """Latency, throughput and memory; every point runs in a process of its own."""

    layouts: Distinct[Layout]
    """Students that are measured beside the teacher."""
    prompt_tokens: Axis[PositiveInt]
    """Lengths of the prompt in tokens, image tokens included."""
    generated_tokens: Axis[PositiveInt]
    """Numbers of tokens generated after it."""
    batch_sizes: Axis[PositiveInt] = (1,)
    """Sequences generated at a time."""
    decode_steps: PositiveInt = 64
    """Steps timed at each context length."""
    warmup_steps: NonNegativeInt = 8
    """Steps before those that are timed."""
    repeats: PositiveInt = 3
    """Times that every point is measured, each in a process of its own."""
    threads: PositiveInt = 1
    """CPU threads that torch may use."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and caches."""
    protocols: Axis[Literal["same_runtime", "paper"]] = ("same_runtime",)
    """same_runtime: teacher and hybrids through the same code, so that what differs is the architecture. paper: as
    the paper measured, each in a runtime of its own, so that runtimes differ too (see docs/profiling.md)."""
    attention: Axis[Literal["eager", "sdpa", "flash_attention_2"]] = ("eager", "sdpa")
    """Attention implementations that the teacher runs with in protocol paper."""
    beyond_positions: Flag = False
    """Whether contexts may exceed the model's max_position_embeddings. A model answers nothing sensible there, but
    costs what it costs; rows say so."""
    generated_check: Distinct[PositiveInt] = ()
    """Those of generated_tokens at which contexts are also generated token by token, to check the shortcut."""

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if unknown := [tokens for tokens in self.generated_check if tokens not in self.generated_tokens]:
            allowed = ", ".join(map(str, self.generated_tokens))
            raise wrong("generated_check", f"{unknown[0]} is not among generated_tokens; allowed: {allowed}")
        return self

    def problem(self, image_tokens: int, max_positions: int) -> tuple[str, str] | None:
        """The key and what is wrong with it for a model whose image takes ``image_tokens`` and that is made for
        sequences of ``max_positions``; none if every point can be measured."""
        prompt, generated = min(self.prompt_tokens), min(self.generated_tokens)
        if prompt <= image_tokens:
            return "prompt_tokens", f"{prompt} leaves no room for text; an image takes {image_tokens}"
        if generated < (steps := self.warmup_steps + self.decode_steps):
            needed = f"warmup_steps + decode_steps ({steps}), which are the last ones generated"
            return "generated_tokens", f"{generated} is less than {needed}"
        prompt, generated = max(self.prompt_tokens), max(self.generated_tokens)
        if prompt + generated > max_positions and not self.beyond_positions:
            limit = f"the model's max_position_embeddings ({max_positions}); set beyond_positions to measure it"
            return "generated_tokens", f"{generated} after {prompt} prompt_tokens exceed {limit}"
        return None
