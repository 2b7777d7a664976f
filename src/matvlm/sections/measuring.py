"""How models are scored, and what is measured of their speed and memory."""

from __future__ import annotations

from matvlm.sections.ablation import Layout
from matvlm.validation import Axis, Distinct, Model, NonNegativeInt, PositiveInt

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

    def problem(self, image_tokens: int, max_positions: int) -> tuple[str, str] | None:
        """The key and what is wrong with it for a model whose image takes ``image_tokens`` and whose sequences are
        at most ``max_positions`` long; none if every point can be measured."""
        prompt, generated = min(self.prompt_tokens), min(self.generated_tokens)
        if prompt <= image_tokens:
            return "prompt_tokens", f"{prompt} leaves no room for text; an image takes {image_tokens}"
        if generated < (steps := self.warmup_steps + self.decode_steps):
            needed = f"warmup_steps + decode_steps ({steps}), which are the last ones generated"
            return "generated_tokens", f"{generated} is less than {needed}"
        prompt, generated = max(self.prompt_tokens), max(self.generated_tokens)
        if prompt + generated > max_positions:
            limit = f"the model's max_position_embeddings ({max_positions})"
            return "generated_tokens", f"{generated} after {prompt} prompt_tokens exceed {limit}"
        return None
