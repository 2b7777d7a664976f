"""One step of a Mamba-2 mixer between its projections, in one launch: convolution, state, gate and norm.

The state is read and written once, which is little beside the weights: a launch is what this costs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, nn
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from matvlm.ops.decode.launch import overlapped
from matvlm.ops.prefill import softplus

WARPS = 8


@triton.jit
def _convolved(row, windows, weights, bias, channel, inside, W: tl.constexpr, BW: tl.constexpr):
    """SiLU of the convolution of ``channel`` (n,), whose window takes in the new input."""
    tap = tl.arange(0, BW)
    new = tl.load(row + channel, mask=inside, other=0.0)
    place = channel[:, None] * W + tap[None, :]
    shifted = inside[:, None] & (tap[None, :] < W - 1)
    window = tl.load(windows + place + 1, mask=shifted, other=0.0)
    window = tl.where(tap[None, :] == W - 1, new[:, None].to(window.dtype), window)
    within = inside[:, None] & (tap[None, :] < W)
    weight = tl.load(weights + place, mask=within, other=0.0).to(tl.float32)
    total = tl.sum(window.to(tl.float32) * weight, 1) + tl.load(bias + channel, mask=inside, other=0.0).to(
        tl.float32
    )
    tl.debug_barrier()  # threads may share an element; all have read it now
    tl.store(windows + place, window, mask=within)
    return total * tl.sigmoid(total)


@triton.jit
def _step_kernel(
    proj,
    windows,
    states,
    conv_weight,
    conv_bias,
    dt_bias,
    A_log,
    skip,
    norm_weight,
    out,
    proj_stride,
    out_stride,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    P: tl.constexpr,
    BP: tl.constexpr,
    W: tl.constexpr,
    BW: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    kv_head, sample = tl.program_id(0), tl.program_id(1)
    inner: tl.constexpr = HEADS * P
    xb: tl.constexpr = KV_HEADS * P
    group: tl.constexpr = HEADS // KV_HEADS
    row = proj + sample * proj_stride  # [z: inner, x: xb, B: xb, C: inner, dt: heads]
    windows += sample * (inner + 2 * xb) * W
    lane = tl.arange(0, BP)
    inside = lane < P
    channel = kv_head * P + lane
    x = _convolved(row + inner, windows, conv_weight, conv_bias, channel, inside, W, BW)
    B = _convolved(row + inner, windows, conv_weight, conv_bias, xb + channel, inside, W, BW)
    for member in range(group):
        head = kv_head * group + member
        C = _convolved(row + inner, windows, conv_weight, conv_bias, 2 * xb + head * P + lane, inside, W, BW)
        raw = tl.load(row + 2 * inner + 2 * xb + head).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32)
        dt = softplus(raw)
        decay = tl.exp(-dt * tl.exp(tl.load(A_log + head).to(tl.float32)))
        tile = inside[:, None] & inside[None, :]
        place = states + (sample * HEADS + head) * P * P + lane[:, None] * P + lane[None, :]
        state = tl.load(place, mask=tile, other=0.0) * decay + (dt * x)[:, None] * B[None, :]
        tl.debug_barrier()
        tl.store(place, state, mask=tile)
        y = tl.sum(state * C[None, :], 1) + tl.load(skip + head).to(tl.float32) * x
        z = tl.load(row + head * P + lane, mask=inside, other=0.0).to(tl.float32)
        y = tl.where(inside, y * z * tl.sigmoid(z), 0.0)
        y = y * tl.rsqrt(tl.sum(y * y, 0) / P + eps)
        y = y * tl.load(norm_weight + head * P + lane, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + sample * out_stride + head * P + lane, y, mask=inside)


def mix_step(mixer: nn.Module, projected: Tensor, window: Tensor, state: Tensor, out: Tensor) -> None:
    """One step of a mixer after its input projection and before its output projection.

    Args:
        mixer: a `matvlm.models.mixer.Mamba2Mixer`. projected: (b, at least the outputs of in_proj).
        window: (b, conv_width, conv_kernel), in place. state: (b, heads, head_dim, d_state) float32, in place.
        out: (b, at least d_inner), filled from the left.
    """
    _step_kernel[(mixer.kv_heads, len(projected))](
        projected,
        window,
        state,
        mixer.conv1d.weight,
        mixer.conv1d.bias,
        mixer.dt_bias,
        mixer.A_log,
        mixer.D,
        mixer.norm.weight,
        out,
        projected.stride(0),
        out.stride(0),
        mixer.norm.eps,
        HEADS=mixer.heads,
        KV_HEADS=mixer.kv_heads,
        P=mixer.head_dim,
        BP=triton.next_power_of_2(mixer.head_dim),
        W=mixer.conv_kernel,
        BW=triton.next_power_of_2(mixer.conv_kernel),
        num_warps=WARPS,
        **overlapped(projected),
    )
