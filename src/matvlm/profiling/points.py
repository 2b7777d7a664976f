"""The points that are measured. Knows nothing of torch, so that the command starts at once."""

from __future__ import annotations

from dataclasses import dataclass

from matvlm.config import Profile

SAME, PAPER = "same_runtime", "paper"
GENERATE = "generate-"
"""Start of the names of runtimes that are transformers' plain `generate`; the attention implementation follows."""
FUSED = "fused"


@dataclass(frozen=True)
class Point:
    """What is measured: ``batch`` sequences of ``prompt_tokens``, image included, and as many generated."""

    prompt_tokens: int
    generated_tokens: int
    batch: int

    @property
    def context(self) -> int:
        """Tokens of a sequence when its last one is generated."""
        return self.prompt_tokens + self.generated_tokens


def points_of(settings: Profile) -> list[Point]:
    """Every point that the settings ask for."""
    return [
        Point(prompt, generated, batch)
        for batch in settings.batch_sizes
        for prompt in settings.prompt_tokens
        for generated in settings.generated_tokens
    ]


def runtimes_of(settings: Profile, protocol: str, teacher: bool) -> list[str]:
    """Names of the runtimes that a model is measured in; empty for the fastest that all share."""
    if protocol == SAME:
        return [""]
    return [GENERATE + name for name in settings.attention] if teacher else [FUSED]
