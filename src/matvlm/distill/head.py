"""Losses of logits, computed from last hidden states through the frozen head, some positions at a time.

The logits of all positions (n, v) are never there. Each chunk's gradient is taken back through the head right
after its forward pass, as liger-kernel does: the head is frozen, so all that a chunk leaves behind is the gradient
of its hidden states, and no logits are computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from matvlm.distill.gradients import with_gradients
from matvlm.distill.losses import cross_entropy, wide

Divergence = Callable[[Tensor, slice], Tensor]
"""Of logits (m, v) and the places of their positions among all n: a value for each, (m,)."""


def head_sums(
    hidden: Tensor,
    head: nn.Linear,
    size: int,
    divergence: Divergence | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of a divergence over all positions, and that of cross-entropy over those with a label.

    Args:
        hidden: (n, d) last hidden states. head: frozen. size: positions whose logits are held at a time.
        labels: (a,) next tokens of the first a positions.

    Returns:
        Two scalars, float32 at least; zero is what was not asked for.
    """
    wanted, given = torch.is_grad_enabled() and hidden.requires_grad, hidden.detach()
    labels = torch.empty(0, dtype=torch.long, device=hidden.device) if labels is None else labels
    parts = (hidden, hidden[: len(labels)])
    sums = [torch.zeros((), dtype=wide(hidden), device=hidden.device) for _ in parts]
    gradients = [torch.zeros_like(part) if wanted else None for part in parts]

    def add(which: int, start: int, logits: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        with torch.set_grad_enabled(wanted):
            logits = logits.detach().requires_grad_(wanted)
            value = function(logits).sum()
            if wanted:
                (slope,) = torch.autograd.grad(value, logits)
                with torch.no_grad():
                    gradients[which][start : start + len(logits)] = slope @ head.weight
        sums[which] += value.detach()

    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        with torch.no_grad():
            logits = head(given[part])  # (m, v)
        if divergence is not None:
            add(0, start, logits, lambda found, part=part: divergence(found, part))
        if len(chosen := labels[part]):
            add(1, start, logits[: len(chosen)], lambda found, chosen=chosen: cross_entropy(found, chosen))
    if not wanted:
        return sums[0], sums[1]
    found = zip(sums, gradients, parts, strict=True)
    prob, ce = (with_gradients(total, [gradient], [part]) for total, gradient, part in found)
    return prob, ce
