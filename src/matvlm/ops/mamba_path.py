"""The functions of `matvlm.ops.torch_path` on the kernels of mamba-ssm and causal-conv1d.

Importing this module raises what importing these packages raises. All sums are in float32 at least. Without
gradients a sequence goes through `fused_mix`, our own three kernels: at the lengths of a prompt the five of
mamba-ssm and what stands around them cost more in launches than attention costs in all.
"""

from __future__ import annotations

import os

# Read when the packages below are imported. Triton's products of float32 matrices are in tf32 unless told
# otherwise, whatever torch is told.
os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")

import torch
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from torch import Tensor

from matvlm.ops import torch_path
from matvlm.ops.prefill import fused_mix
from matvlm.ops.tuning import keep_choices

__all__ = ["convolve", "convolve_step", "fused_mix", "gated_norm", "keep_choices", "scan", "step"]

CONV_WIDTHS = (2, 3, 4)
"""Widths that causal-conv1d has kernels for."""
ALIGNMENT = 8
"""Elements that the strides of its inputs must be multiples of where the channels come last."""


def convolve(inputs: Tensor, before: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """As `torch_path.convolve`."""
    width = weight.shape[1]
    # The kernel's backward pass adds its shares of the weight's gradient up in any order.
    if width not in CONV_WIDTHS or torch.are_deterministic_algorithms_enabled():
        return torch_path.convolve(inputs, before, weight, bias)
    if before is not None:
        inputs = torch.cat([before[..., 1:].transpose(1, 2), inputs], dim=1)
    channels = inputs.transpose(1, 2)  # (b, c, l)
    if any(size % ALIGNMENT for size in (inputs.shape[2], inputs.stride(0), inputs.stride(1))):
        channels = channels.contiguous()
    out = causal_conv1d_fn(channels, weight, bias, activation="silu").transpose(1, 2)
    return out if before is None else out[:, width - 1 :]


def convolve_step(inputs: Tensor, window: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `torch_path.convolve_step`."""
    if weight.shape[1] not in CONV_WIDTHS:
        return torch_path.convolve_step(inputs, window, weight, bias)
    return causal_conv1d_update(inputs, window, weight, bias, "silu")


def scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """As `torch_path.scan`, except that the output has the type of x; the state is float32."""
    B = _as_groups(B, C.shape[2])
    return mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D, initial_states=state, return_final_states=True)


def step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """As `torch_path.step`, in place on the state."""
    heads, head_dim, d_state = state.shape[1:]
    y = selective_state_update(
        state,
        x,
        dt[..., None].expand(-1, -1, head_dim),
        A[:, None, None].expand(-1, head_dim, d_state),
        _as_groups(B, C.shape[1], dim=1),
        C,
        D[:, None].expand(-1, head_dim),
        dt_bias=torch.zeros((), device=dt.device).expand(heads, head_dim),  # it fails without one
    )
    return y, state


def gated_norm(x: Tensor, z: Tensor, weight: Tensor, group_size: int, eps: float) -> Tensor:
    """As `torch_path.gated_norm`."""
    return rmsnorm_fn(x, weight, None, z=z, eps=eps, group_size=group_size, norm_before_gate=False).to(z.dtype)


def _as_groups(B: Tensor, groups: int, dim: int = 2) -> Tensor:
    """The kernels want as many groups in B as in C."""
    return B if B.shape[dim] == groups else B.repeat_interleave(groups // B.shape[dim], dim=dim)
