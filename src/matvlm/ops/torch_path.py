"""What a Mamba-2 mixer computes beside its projections, in readable torch, on any device and in any precision.

`matvlm.ops.mamba_path` has the same functions on kernels. Shapes: batch b, length l, channels c, heads h, groups g
(g divides h; head i reads group ``i // (h / g)``), head_dim p, d_state n, width k of the convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from matvlm.ops.ssd import ssd_chunked, ssd_step

fused_mix = None
"""All that a mixer does between its projections at once; only kernels can."""


def convolve(inputs: Tensor, before: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of the causal depthwise convolution.

    Args:
        inputs: (b, l, c). before: (b, c, k), the inputs that came before; zeros if none.
        weight: (c, k). bias: (c,).

    Returns:
        (b, l, c).
    """
    width = weight.shape[1]
    inputs = inputs.transpose(1, 2)
    window = F.pad(inputs, (width - 1, 0)) if before is None else torch.cat([before[..., 1:], inputs], dim=-1)
    return F.silu(F.conv1d(window, weight[:, None], bias, groups=len(weight))).transpose(1, 2)


def convolve_step(inputs: Tensor, window: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`convolve` of one position (b, c), which enters ``window`` (b, c, k) in place."""
    window.copy_(torch.cat([window[..., 1:], inputs[..., None]], dim=-1))
    return F.silu(F.conv1d(window, weight[:, None], bias, groups=len(weight)))[..., 0]


def scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The recurrence over a sequence; see `matvlm.ops.ssd`.

    Args:
        x: (b, l, h, p). dt: (b, l, h) positive. A: (h,) negative. B, C: (b, l, g, n). D: (h,).
        state: (b, h, p, n) before, zeros if none. chunk_size: in steps.

    Returns:
        (b, l, h, p) and the last state (b, h, p, n), in the type of dt: its sums are long.
    """
    x, B, C = (t.to(dt.dtype) for t in (x, B, C))
    return ssd_chunked(x, dt, A, B, C, D, state, chunk_size)


def step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """`scan` of one step: x (b, h, p), dt (b, h), B, C (b, g, n)."""
    x, B, C = (t.to(dt.dtype) for t in (x, B, C))
    return ssd_step(state, x, dt, A, B, C, D)


def gated_norm(x: Tensor, z: Tensor, weight: Tensor, group_size: int, eps: float) -> Tensor:
    """RMSNorm per group of channels, after the gate: ``norm(x silu(z)) weight``.

    Args:
        x, z: (b, l, c). weight: (c,).

    Returns:
        (b, l, c), computed in the type of x (float32 or wider), in that of z.
    """
    gated = (x * F.silu(z.to(x.dtype))).unflatten(-1, (-1, group_size))
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (normed.flatten(-2) * weight.to(x.dtype)).to(z.dtype)
