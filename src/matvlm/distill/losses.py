"""The distillation losses: L_prob, L_layer and L_ce.

By default each is a mean over tokens (``reduction: token``), so that weights carry over to other lengths,
batch sizes and widths. ``reduction: release`` follows the arithmetic of the paper's release instead: sums
and norms over the whole micro-batch, padding included, and a mean over each micro-batch's own answers.
Shapes: batch b, length l, vocabulary v, width d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from matvlm.sections import Divergence

DIVERGENCES = get_args(Divergence)
LOG_TINY = math.log(torch.finfo(torch.float32).tiny)
"""Log of a mass that is none, which a logarithm of zero would not be."""


@dataclass(frozen=True)
class TopK:
    """The teacher's k largest log-probabilities, the log of the mass outside them, and tokens drawn from there.

    ``values``: (..., k) log-probabilities at temperature 1. ``indices``: (..., k). ``tail``: (...,).
    ``drawn_values``, ``drawn_indices``: (..., m), of tokens outside the top k, drawn with replacement, each in
    proportion to its probability; m may be 0.
    """

    values: Tensor
    indices: Tensor
    tail: Tensor
    drawn_values: Tensor
    drawn_indices: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int, draws: int = 0, generator: torch.Generator | None = None) -> TopK:
        """The top k of (..., v) logits, k at most v, and ``draws`` tokens of the rest if there is one."""
        log_p = _log_softmax(logits)
        values, indices = log_p.topk(min(k, logits.shape[-1]), dim=-1)
        rest = log_p.scatter(-1, indices, -torch.inf)
        # Summed up, not what is left of one: a teacher is often surer than float32 can tell 1 - p from 0.
        tail = rest.logsumexp(-1).clamp(min=LOG_TINY)
        if not draws or k >= logits.shape[-1]:
            return cls(values, indices, tail, values[..., :0], indices[..., :0])
        flat = rest.softmax(-1).reshape(-1, logits.shape[-1])
        drawn = flat.multinomial(draws, replacement=True, generator=generator).reshape(*tail.shape, draws)
        return cls(values, indices, tail, log_p.gather(-1, drawn), drawn)

    def __getitem__(self, index: Tensor | slice) -> TopK:
        """Of some positions, in the types that the losses take."""
        return TopK(
            self.values[index].float(),
            self.indices[index].long(),
            self.tail[index].float(),
            self.drawn_values[index].float(),
            self.drawn_indices[index].long(),
        )

    def student_log_probs(self, student: Tensor) -> Tensor:
        """The student's log-probabilities (..., k + 1) of the same tokens and of all others together."""
        chosen = _log_softmax(student).gather(-1, self.indices)
        return torch.cat([chosen, _log_rest(chosen)[..., None]], dim=-1)

    def log_probs(self) -> Tensor:
        """The teacher's (..., k + 1), the tail last."""
        return torch.cat([self.values, self.tail[..., None]], dim=-1)

    def estimated_kl(self, student: Tensor) -> Tensor:
        """KL(teacher || student) (...,): the top k's part as it is, and the tail's mass times the mean of log p -
        log q over the drawn tokens, whose expectation over the draws is the tail's part, for the gradient too; no
        drawn token's share of the gradient is more than the tail's mass (Anshumann et al. 2025, whose drawn
        targets have no exact top). With draws that stay the same it is no divergence: it may be negative, and what
        fits them alone is fitted to them."""
        log_q = _log_softmax(student)
        drawn = (self.drawn_values - log_q.gather(-1, self.drawn_indices)).mean(-1)
        return _kl(self.values, log_q.gather(-1, self.indices)) + self.tail.exp() * drawn


def prob_divergence(student: Tensor, teacher: Tensor | TopK, divergence: str, temperature: float = 1.0) -> Tensor:
    """Divergence of the student's next-token distribution from the teacher's at each position.

    ``kl`` is KL(teacher || student), ``reverse`` KL(student || teacher), ``jsd`` the Jensen-Shannon divergence
    (half of each one's KL to their mean), ``ce`` cross-entropy on the teacher's most probable token, ``l2``
    the root mean square difference of the logits. The first three are multiplied by the temperature squared,
    which keeps their gradients' scale (Hinton et al. 2015).

    Args:
        student: (..., v) logits. teacher: (..., v) logits, or their top k. Of these ``kl`` uses the drawn tokens
            where there are some; the others take the tail as one token, which can only lose.

    Returns:
        (...), in nats but for ``l2``.

    Raises:
        ValueError: unknown divergence, or one that a top-k cache cannot give.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}; allowed: {', '.join(DIVERGENCES)}")
    if isinstance(teacher, TopK):
        if divergence == "l2" or temperature != 1.0:
            raise ValueError("a top-k cache serves kl, reverse, jsd and ce at temperature 1 only")
        if divergence == "ce":
            return cross_entropy(student, teacher.indices[..., 0])
        if divergence == "kl" and teacher.drawn_indices.shape[-1]:
            return teacher.estimated_kl(student)
        log_s, log_t = teacher.student_log_probs(student), teacher.log_probs()
    else:
        if divergence == "ce":
            return cross_entropy(student, teacher.argmax(-1))
        if divergence == "l2":
            return root_mean_square(student - teacher)
        log_s, log_t = _log_softmax(student, temperature), _log_softmax(teacher, temperature)
    scale = temperature**2
    if divergence == "kl":
        return scale * _kl(log_t, log_s)
    if divergence == "reverse":
        return scale * _kl(log_s, log_t)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return scale * 0.5 * (_kl(log_t, log_m) + _kl(log_s, log_m))


def layer_divergence(student: Tensor, teacher: Tensor, divergence: str) -> Tensor:
    """Difference of a layer's output from the teacher's at each position.

    ``l2`` is the Euclidean norm over the width divided by its square root, ``kl`` the divergence
    KL(teacher || student) of the softmaxes over the width.

    Args:
        student, teacher: (..., d), before the final LayerNorm also at the last layer.
    """
    if divergence == "l2":
        return root_mean_square(student - teacher)
    return _kl(_log_softmax(teacher), _log_softmax(student))


def release_prob(student: Tensor, teacher: Tensor, divergence: str, temperature: float) -> Tensor:
    """What each position adds to L_prob as the release computes it, padding included; `release_total` makes the
    loss of their sum. ``jsd`` is the halved sum of KL(M || student) and KL(M || teacher), ``l2`` the square of the
    difference's norm.

    Args:
        student, teacher: (..., v) logits.
    """
    if divergence == "l2":
        return (student - teacher).to(wide(student)).square().sum(-1)
    if divergence == "ce":
        return cross_entropy(student, teacher.argmax(-1))
    log_s, log_t = _log_softmax(student, temperature), _log_softmax(teacher, temperature)
    if divergence == "jsd":
        log_m = torch.logaddexp(log_s, log_t) - math.log(2)
        return 0.5 * (_kl(log_m, log_s) + _kl(log_m, log_t))
    return _kl(log_t, log_s) if divergence == "kl" else _kl(log_s, log_t)


def release_total(total: Tensor, divergence: str, batch: int, positions: int) -> Tensor:
    """L_prob of a micro-batch of ``batch`` samples as the release computes it, from the sum of `release_prob` over
    all its ``positions``: divided by the number of samples, ``ce`` by that of positions; ``l2`` is one norm."""
    if divergence == "l2":
        return total.clamp(min=torch.finfo(total.dtype).tiny).sqrt()  # whose gradient at zero is zero
    return total / (positions if divergence == "ce" else batch)


def release_layer(student: Tensor, teacher: Tensor, divergence: str) -> Tensor:
    """L_layer of one layer as the release computes it, over all positions of (b, l, d), padding included:
    ``l2`` is one norm of the whole difference. ``kl`` is taken over the width, in the arithmetic of the
    release's L_prob: summed over the positions and divided by b."""
    if divergence == "l2":
        return (student - teacher).to(wide(student)).norm()
    return layer_divergence(student, teacher, "kl").sum() / student.shape[0]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (...,) on the tokens ``targets`` (...,) of logits (..., v)."""
    return -_log_softmax(logits).gather(-1, targets[..., None]).squeeze(-1)


def wide(tensor: Tensor) -> torch.dtype:
    """The type that losses of ``tensor`` are computed in: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def root_mean_square(difference: Tensor) -> Tensor:
    """Root mean square over the last dimension, with a zero gradient at zero."""
    return difference.to(wide(difference)).square().mean(-1).add(1e-12).sqrt()


def _log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    if temperature != 1.0:
        logits = logits.to(wide(logits)) / temperature
    return F.log_softmax(logits, dim=-1, dtype=wide(logits))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _log_rest(log_p: Tensor) -> Tensor:
    """log(1 - sum exp(log_p)) over the last dimension, at least that of the smallest float32 step below 1."""
    return torch.log1p(-log_p.exp().sum(-1).clamp(max=1 - 1e-7))
