"""State-space duality (Mamba-2, Dao and Gu 2024, arXiv 2405.21060) in readable torch.

For one head with state ``h`` of shape (head_dim, d_state)::

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T
    y_t = h_t C_t + D x_t

Three forms compute the same function: `ssd_sequential` is the recurrence itself, `ssd_chunked` splits the
sequence into chunks and does each by matrix products (section 6 of the paper), `ssd_step` is one step of
decoding. Shapes: batch b, length l, heads h, groups g (g divides h; head i reads group ``i // (h / g)``),
head_dim p, d_state n.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of the recurrence.

    Args:
        state: (b, h, p, n) before the step.
        x: (b, h, p) input. dt: (b, h) step sizes, already positive. A: (h,) negative rates.
        B, C: (b, g, n). D: (h,) skip, or none.

    Returns:
        Output (b, h, p) and the state after the step (b, h, p, n).
    """
    heads = x.shape[1]
    B, C = _per_head(B, heads, dim=1), _per_head(C, heads, dim=1)
    decay = torch.exp(dt * A)  # (b, h)
    state = state * decay[..., None, None] + (dt[..., None] * x)[..., None] * B[:, :, None, :]
    y = (state * C[:, :, None, :]).sum(-1)
    if D is not None:
        y = y + D[:, None] * x
    return y, state


def ssd_sequential(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, one step at a time: the reference that the other forms are tested against.

    Args:
        x: (b, l, h, p). dt: (b, l, h) positive. A: (h,) negative. B, C: (b, l, g, n). D: (h,) or none.
        initial_state: (b, h, p, n), zeros if none.

    Returns:
        Output (b, l, h, p) and the last state (b, h, p, n).
    """
    state = _initial_state(x, B, initial_state)
    outputs = []
    for t in range(x.shape[1]):
        y, state = ssd_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The same function as `ssd_sequential`, by matrix products within chunks and one scan over chunks.

    Arguments and results as for `ssd_sequential`; any length, ``chunk_size`` in steps.
    """
    batch, length, heads, head_dim = x.shape
    d_state = B.shape[-1]
    state = _initial_state(x, B, initial_state)
    chunk = min(chunk_size, length)
    pad = -length % chunk
    if pad:  # dt = 0 makes a step that changes nothing
        x, dt, B, C = (F.pad(t, (0, 0) * (t.ndim - 2) + (0, pad)) for t in (x, dt, B, C))
    count = (length + pad) // chunk

    B, C = _per_head(B, heads, dim=2), _per_head(C, heads, dim=2)
    inputs = (x * dt[..., None]).view(batch, count, chunk, heads, head_dim).permute(0, 3, 1, 2, 4)
    B = B.reshape(batch, count, chunk, heads, d_state).permute(0, 3, 1, 2, 4)  # (b, h, count, chunk, n)
    C = C.reshape(batch, count, chunk, heads, d_state).permute(0, 3, 1, 2, 4)
    log_decay = (dt * A).view(batch, count, chunk, heads).permute(0, 3, 1, 2).cumsum(-1)  # (b, h, count, chunk)

    # Within a chunk: y_i = sum_{j <= i} exp(l_i - l_j) (C_i . B_j) dt_j x_j. The upper triangle is masked
    # before the exponential: exp of its large positive values would make infinite gradients.
    gaps = log_decay[..., :, None] - log_decay[..., None, :]
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    scores = torch.exp(gaps.masked_fill(future, float("-inf"))) * (C @ B.transpose(-1, -2))
    y = scores @ inputs  # (b, h, count, chunk, p)

    # Between chunks: what each chunk adds to the state, and the state that enters each chunk.
    to_end = torch.exp(log_decay[..., -1:] - log_decay)
    added = (inputs * to_end[..., None]).transpose(-1, -2) @ B  # (b, h, count, p, n)
    whole = torch.exp(log_decay[..., -1])  # (b, h, count)
    entering = []
    for index in range(count):
        entering.append(state)
        state = state * whole[:, :, index, None, None] + added[:, :, index]
    carried = C @ torch.stack(entering, dim=2).transpose(-1, -2)  # (b, h, count, chunk, p)
    y = y + carried * torch.exp(log_decay)[..., None]

    y = y.permute(0, 2, 3, 1, 4).reshape(batch, length + pad, heads, head_dim)
    if D is not None:
        y = y + D[:, None] * x
    return y[:, :length], state


def _per_head(tensor: Tensor, heads: int, dim: int) -> Tensor:
    """Repeat groups along ``dim`` so that every head has its own."""
    groups = tensor.shape[dim]
    return tensor if groups == heads else tensor.repeat_interleave(heads // groups, dim=dim)


def _initial_state(x: Tensor, B: Tensor, initial_state: Tensor | None) -> Tensor:
    if initial_state is not None:
        return initial_state
    batch, _, heads, head_dim = x.shape
    return x.new_zeros(batch, heads, head_dim, B.shape[-1])
