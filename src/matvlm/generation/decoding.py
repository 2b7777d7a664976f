"""How an answer is chosen from what the model finds likely. Needs no torch, so that mistakes come at once."""

from __future__ import annotations

from dataclasses import dataclass

from matvlm.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """Greedy unless a temperature or ``top_p`` asks for sampling, or ``num_beams`` for a beam search.

    Args:
        max_new_tokens: tokens an answer has at most.
        temperature: sampling; what the logits are divided by, greater than 0.
        top_p: sampling from the likeliest tokens whose probabilities reach this sum, in (0, 1].
        seed: of the sampling, 0 to 2^63 - 1; none: another answer each time.
        num_beams: answers followed side by side; 1 is no search.

    Raises:
        UserError: a value out of range, or values that contradict each other.
    """

    max_new_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    num_beams: int = 1

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: must be at least 1")
        if self.num_beams < 1:
            raise UserError(f"--num-beams {self.num_beams}: must be at least 1")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise UserError(
                f"--temperature {self.temperature:g}: must be greater than 0; without it decoding is greedy"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p:g}: must be greater than 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be from 0 to 2^63 - 1")
        if self.samples and self.num_beams > 1:
            given = "--temperature" if self.temperature is not None else "--top-p"
            raise UserError(f"--num-beams {self.num_beams} with {given}: a beam search does not sample; give one")
        if self.seed is not None and not self.samples:
            raise UserError(f"--seed {self.seed}: nothing is drawn; sampling takes --temperature or --top-p")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature is not None or self.top_p is not None

    def arguments(self) -> dict[str, object]:
        """For transformers' `generate`, with all that its defaults or a model's folder would add said outright."""
        chosen: dict[str, object] = {"do_sample": self.samples, "num_beams": self.num_beams}
        if self.samples:
            chosen |= {"temperature": self.temperature or 1.0, "top_p": self.top_p or 1.0, "top_k": 0}
        return chosen
