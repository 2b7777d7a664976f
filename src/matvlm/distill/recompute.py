"""What a compiled layer keeps for its backward pass under gradient checkpointing, and what it computes again.

Plain checkpointing runs a whole layer again. Of a frozen layer the backward pass reads less: neither the output of
attention's last projection nor that of the MLP, only what their inputs were made of. A compiler that sees the
checkpoint leaves out what is not needed, and keeps what is asked for here: attention's output and the narrow
projections. What is computed again is the widening half of the MLP, norms and activations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

ops = torch.ops.aten
ATTENTION = {
    getattr(ops, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
}
PRODUCTS = {ops.mm.default: 0, ops.addmm.default: 1}
"""Products of matrices, and where their left factor (n, inputs) stands, before the right one (inputs, outputs)."""


def checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's ``forward`` that, once compiled, keeps only what `policy` says."""
    contexts = partial(create_selective_checkpoint_contexts, policy)

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


def policy(_context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether the result of an operation is kept."""
    kept = op in ATTENTION
    if op in PRODUCTS:
        left, right = args[PRODUCTS[op] :][:2]
        kept = right.shape[1] <= left.shape[1]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
