"""Float32 copies of weights that are trained in a shorter type.

The steps of an optimizer are smaller than what bfloat16 resolves. So it moves copies in float32, and the model's
weights are those rounded; gradients of micro-batches are added up in float32 too.
"""

from __future__ import annotations

import torch
from torch import nn


class Masters:
    """What the optimizer moves.

    Attributes:
        weights: by name, float32 copies of the parameters that are shorter, and the others themselves.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.weights = {
            name: nn.Parameter(parameter.detach().float()) if parameter.dtype.itemsize < 4 else parameter
            for name, parameter in parameters.items()
        }
        self._pairs = [
            (parameter, self.weights[name])
            for name, parameter in parameters.items()
            if self.weights[name] is not parameter
        ]

    def collect(self) -> None:
        """After a backward pass: take its gradients over and away from the model."""
        found = [(parameter, master) for parameter, master in self._pairs if parameter.grad is not None]
        if not found:
            return
        # All at once: one by one, hundreds of small kernels would be launched.
        gradients = [torch.empty_like(master) for _, master in found]
        torch._foreach_copy_(gradients, [parameter.grad for parameter, _ in found])
        held = [master.grad for _, master in found if master.grad is not None]
        if held:
            more = zip(found, gradients, strict=True)
            torch._foreach_add_(held, [part for (_, master), part in more if master.grad is not None])
        for (parameter, master), gradient in zip(found, gradients, strict=True):
            parameter.grad = None
            if master.grad is None:
                master.grad = gradient

    @torch.no_grad()
    def publish(self) -> None:
        """After a step: give the model its weights."""
        if self._pairs:
            torch._foreach_copy_(*(list(side) for side in zip(*self._pairs, strict=True)))
