"""Gradients that are computed while the loss is, so that the graph behind a part of it can go at once.

What a loss holds for its backward pass then is one gradient of each of its inputs, not the logits or the
activations that it was computed from, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class _Settled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, gradients: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * upstream for g in ctx.saved_tensors)


def with_gradients(value: Tensor, gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> Tensor:
    """A scalar whose gradient of each of ``inputs`` is known, as a function of them; None is a gradient of 0."""
    return _Settled.apply(value.detach(), gradients, *inputs)


def settle(value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The scalar ``value`` as a function of ``inputs`` alone: its graph is used now and freed."""
    if not value.requires_grad:
        return value
    return with_gradients(value, torch.autograd.grad(value, inputs, allow_unused=True), inputs)
