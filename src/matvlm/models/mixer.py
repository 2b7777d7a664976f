"""The Mamba-2 mixer that stands where attention stood: the Mamba-in-Llama form of Mamba-2.

Its heads, groups and state are those of the attention that it replaces (``d_state = head_dim``, one group a
head, x and B as many as there are key-value heads), so that attention's projections fit into it:
x <- value, B <- key, C <- query, out_proj <- dense.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache

from matvlm.ops.choose import path_for

A_RANGE = (1.0, 16.0)
"""Range of the decay rates -A at initialisation (Mamba-2's own)."""
DT_RANGE = (0.001, 0.1)
"""Range of the step sizes at initialisation, log-uniform (Mamba-2's own)."""


class GatedRMSNorm(nn.Module):
    """RMSNorm per group of ``group_size`` channels, after the gate: ``norm(x silu(z)) w``."""

    def __init__(self, width: int, group_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.group_size = group_size
        self.eps = eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z: (..., width); computed in float32 or wider, returned in the type of z."""
        return path_for(z.device, z.dtype).gated_norm(x, z, self.weight, self.group_size, self.eps)


class Mamba2Mixer(nn.Module):
    """Mamba-2 with the dimensions of an attention layer.

    Args:
        hidden_size: width of the residual stream.
        heads, kv_heads, head_dim: of the attention replaced; ``kv_heads`` divides ``heads``.
        conv_kernel: width of the causal convolution. chunk_size: of the scan, in steps.
        bias: whether in_proj and out_proj have biases. layer_idx: of the layer, to find its cache.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        layer_idx: int,
        conv_kernel: int = 4,
        chunk_size: int = 256,
        bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.d_inner, self.d_xb = heads * head_dim, kv_heads * head_dim
        self.layer_idx, self.conv_kernel, self.chunk_size = layer_idx, conv_kernel, chunk_size
        conv_width = self.d_inner + 2 * self.d_xb
        # rows: [z: d_inner, x: d_xb, B: d_xb, C: d_inner, dt: heads]
        self.in_proj = nn.Linear(hidden_size, self.d_inner + conv_width + heads, bias=bias)
        self.conv1d = nn.Conv1d(conv_width, conv_width, conv_kernel, groups=conv_width)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(self.d_inner, head_dim, eps)
        self.out_proj = nn.Linear(self.d_inner, hidden_size, bias=bias)
        self.reset_scan()

    @torch.no_grad()
    def reset_scan(self) -> None:
        """Mamba-2's own initialisation of the decays, step sizes and skip, of whichever was not loaded."""
        if self.A_log.is_meta:
            return
        low, high = (math.log(bound) for bound in DT_RANGE)
        dt = torch.exp(torch.empty_like(self.dt_bias).uniform_(low, high)).clamp(min=1e-4)
        # The library's functions leave alone what it has filled from a checkpoint.
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(*A_RANGE).log_())
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        init.ones_(self.D)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Mix along the sequence.

        Args:
            hidden: (b, l, hidden_size), already normalised.
            mask: (b, l), 0 where a position is padding; padding enters neither convolution nor state.
            cache: the model's cache; its layer ``layer_idx`` holds the convolution's last inputs
                (b, conv_width, conv_kernel) and the state (b, heads, head_dim, d_state).

        Returns:
            (b, l, hidden_size).
        """
        path, length = path_for(hidden.device, hidden.dtype), hidden.shape[1]
        work = torch.promote_types(hidden.dtype, torch.float32)
        layer = None if cache is None else cache.layers[self.layer_idx]
        continued = layer is not None and cache.has_previous_state(self.layer_idx)
        stepping = continued and length == 1

        projected = self.in_proj(hidden)
        if path.fused_mix is not None and not stepping and not torch.is_grad_enabled():
            return self.out_proj(self._mix_at_once(path, projected, mask, layer, continued))
        z, xBC, dt = projected.split([self.d_inner, self.d_inner + 2 * self.d_xb, self.heads], dim=-1)
        if mask is not None:
            xBC = xBC * mask[..., None].to(xBC.dtype)
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        if stepping and mask is None:
            xBC = path.convolve_step(xBC[:, 0], layer.conv_states[0], weight, bias)[:, None]
        else:
            before = layer.conv_states[0].clone() if continued else None
            if layer is not None:
                self._remember(layer, xBC, before, mask)
            xBC = path.convolve(xBC, before, weight, bias)
        if mask is not None:
            xBC = xBC * mask[..., None].to(xBC.dtype)

        x, B, C = xBC.split([self.d_xb, self.d_xb, self.d_inner], dim=-1)
        x, B, C = (t.unflatten(-1, (-1, self.head_dim)) for t in (x, B, C))
        x = x.repeat_interleave(self.heads // self.kv_heads, dim=2)  # (b, l, heads, head_dim)
        dt = F.softplus(dt.to(work) + self.dt_bias.to(work))  # (b, l, heads)
        if mask is not None:
            dt = dt * mask[..., None]  # no decay over padding either
        A, D = -torch.exp(self.A_log.to(work)), self.D.to(work)

        state = layer.recurrent_states[0] if continued else None
        if stepping:
            y, state = path.step(state, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D)
            y = y[:, None]
        else:
            y, state = path.scan(x, dt, A, B, C, D, state, self.chunk_size)
        if layer is not None:
            layer.update_recurrent_state(state)
        return self.out_proj(self.norm(y.flatten(-2), z))

    def _mix_at_once(self, path, projected: Tensor, mask: Tensor | None, layer, continued: bool) -> Tensor:
        """What stands between the projections, by few kernels that have no backward."""
        y, window, state = path.fused_mix(
            projected,
            self.conv1d.weight,
            self.conv1d.bias,
            self.dt_bias,
            self.A_log,
            self.D,
            self.norm.weight,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            eps=self.norm.eps,
            conv_before=layer.conv_states[0] if continued else None,
            state=layer.recurrent_states[0] if continued else None,
            mask=mask,
        )
        if layer is not None:
            # What is continued is replaced: the cache would append it.
            layer.has_previous_state[0] = False
            layer.update_conv_state(window, conv_kernel_size=self.conv_kernel)
            layer.update_recurrent_state(state)
        return y

    def _remember(self, layer, inputs: Tensor, before: Tensor | None, mask: Tensor | None) -> None:
        """Store each sample's last ``conv_kernel`` inputs, which padding on the right must not push out.

        Args:
            inputs: (b, l, conv_width). before: (b, conv_width, conv_kernel), those remembered so far, if any.
        """
        inputs, width = inputs.transpose(1, 2), self.conv_kernel
        if mask is None:
            inputs = inputs[..., -width:]
        if before is None:
            before = inputs.new_zeros((*inputs.shape[:2], width))
        window = torch.cat([before, inputs], dim=-1)  # (b, conv_width, conv_kernel + l)
        if mask is None:
            last = window[..., -width:]
        else:
            steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
            ends = (mask.bool() * steps).amax(1)  # (b,) one past the last real position; 0 if there is none
            index = ends[:, None] + torch.arange(width, device=mask.device)
            last = window.gather(-1, index[:, None, :].expand(-1, window.shape[1], -1))
        layer.update_conv_state(last, conv_kernel_size=width)
