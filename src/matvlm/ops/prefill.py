"""The Mamba-2 mixer between its projections as three Triton kernels, for inference: no gradients.

`fused_mix` computes what ``Mamba2Mixer.forward`` does between ``in_proj`` and ``out_proj``: causal convolution,
scan, gate and norm. Importing this module needs triton.

What it costs, per token, with w bytes an element, H heads and K key-value heads of p channels:

- the floor: ``projected`` read and the output written once, ``w ((3 H + 2 K) p + H)`` bytes, and the recurrence,
  ``5 H p^2`` FLOPs (decay, update, output). Phi-2 (H = K = 32, p = 80, bf16): 25.7 kB and 1.0 MFLOP, which the
  memory of an H100 (3.35 TB/s) takes 0.063 ms for at 8192 tokens;
- here: ``w (3 H + 6 K) p + (w + 16) H`` bytes by channel and ``(8 + 2 w) H p^2 / CHUNK`` by states between chunks;
  ``2 H p (CHUNK + OUTPUT_ROWS) + 4 H p^2`` FLOPs in products. Phi-2 with 128 and 64: 47 + 19 kB, 0.16 ms at 8192
  tokens, less what the L2 cache keeps; 1.8 MFLOP, which become 3.7 as tiles pad p = 80 to 128: 0.030 ms at
  989 TFLOP/s. The convolutions run outside the tensor cores, on padded tiles too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# To be tuned on the card; these are for an H100 (228 KB of shared memory and 65536 registers an SM). CHUNK is the
# number of steps between two states: more write fewer states and compute more scores. Rows of tiles divide it.
CHUNK = 128
STATE_ROWS, STATE_WARPS, STATE_STAGES = 16, 8, 1
# Two stages would hide the loads of the scores but fill the SM's shared memory with one program.
OUTPUT_ROWS, OUTPUT_WARPS, OUTPUT_STAGES = 64, 8, 1
REGISTERS = 128
"""A thread's limit in 16 bits, so that two programs of 8 warps share an SM; a few values are spilled for it."""
WIDE_ROWS = (16, 16)
"""Rows of states and outputs in float32, whose exact products run outside the tensor cores, from registers."""
PASS_TILE, PASS_WARPS, PASS_STAGES = 512, 4, 4


def fused_mix(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    eps: float,
    conv_before: Tensor | None = None,
    state: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution, scan, gate and norm of a `Mamba2Mixer`, given the output of its ``in_proj``.

    Args:
        projected: (b, l, width) in bf16, fp16 or float32, of columns [z: d_inner, x: d_xb, B: d_xb, C: d_inner,
            dt: heads]; d_inner = heads head_dim, d_xb = kv_heads head_dim.
        conv_weight: (conv_width, 1, k) or (conv_width, k). conv_bias: (conv_width,), of [x, B, C].
        dt_bias, A_log, D: (heads,). norm_weight: (d_inner,), over groups of head_dim. eps: of the norm.
        conv_before: (b, conv_width, k) last inputs of the convolution, zeros if none.
        state: (b, heads, head_dim, head_dim) before the first step, zeros if none.
        mask: (b, l), 0 where a position is padding, on either side.

    Returns:
        Output (b, l, d_inner) and the convolution's last inputs (b, conv_width, k), both in the type of
        ``projected``, and the state after the last step (b, heads, head_dim, head_dim) in float32.
    """
    if torch.is_grad_enabled() and projected.requires_grad:
        raise RuntimeError("fused_mix has no backward: call it under torch.no_grad() or torch.inference_mode()")
    if projected.stride(2) != 1:
        projected = projected.contiguous()
    batch, length, _ = projected.shape
    d_inner, d_xb, kernel = heads * head_dim, kv_heads * head_dim, conv_weight.shape[-1]
    conv_width = d_inner + 2 * d_xb
    chunks = triton.cdiv(length, CHUNK)
    if conv_before is not None:
        conv_before = conv_before.contiguous()
    if state is not None:
        state = state.contiguous()
    if mask is not None:
        mask = mask.view(torch.uint8) if mask.dtype is torch.bool else mask
        mask = mask.contiguous()

    new = projected.new_empty
    y, conv_after = new(batch, length, d_inner), new(batch, conv_width, kernel)
    xB = new(batch, length, 2 * d_xb)  # after the convolution
    state_after = new(batch, heads, head_dim, head_dim, dtype=torch.float32)
    added = new(batch, chunks, heads, head_dim, head_dim, dtype=torch.float32)  # to the state, by each chunk
    # The state entering each chunk is only ever an operand of a product in the type of the input.
    entering = new(batch, chunks, heads, head_dim, head_dim)
    times = new(2, batch, heads, chunks * CHUNK, dtype=torch.float32)  # step sizes; log decay within a chunk

    sizes = (length, chunks, projected.stride(0), projected.stride(1))
    shape = {"HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim, "KERNEL": kernel, "CHUNK": CHUNK}
    tile = {"WIDTH": max(16, triton.next_power_of_2(head_dim)), "TAPS": triton.next_power_of_2(kernel)}
    tiles = triton.cdiv(head_dim * head_dim, PASS_TILE)
    narrow = projected.element_size() == 2
    state_rows, output_rows = (STATE_ROWS, OUTPUT_ROWS) if narrow else WIDE_ROWS
    tile["maxnreg"] = REGISTERS if narrow else None
    # Heads come first in a grid: neighbours then read adjacent columns of the same rows.
    with torch.cuda.device_of(projected):  # triton launches on the current device
        _chunk_states[(heads, chunks, batch)](
            projected, conv_before, mask, conv_weight, conv_bias, dt_bias, A_log, xB, times, added, *sizes,
            **shape, **tile, ROWS=state_rows, num_warps=STATE_WARPS, num_stages=STATE_STAGES,
        )  # fmt: skip
        _pass_states[(heads * tiles + triton.cdiv(conv_width, PASS_TILE), batch)](
            projected, conv_before, mask, state, times, added, entering, state_after, conv_after, *sizes,
            **shape, TILE=PASS_TILE, STAGES=PASS_STAGES, num_warps=PASS_WARPS,
        )  # fmt: skip
        _chunk_outputs[(heads, triton.cdiv(length, output_rows), batch)](
            projected, conv_before, mask, conv_weight, conv_bias, xB, times, entering, D, norm_weight, y, *sizes,
            eps, **shape, **tile, ROWS=output_rows, num_warps=OUTPUT_WARPS, num_stages=OUTPUT_STAGES,
        )  # fmt: skip
    return y, conv_after, state_after


# Lengths are not specialised: every new length would compile anew.
_UNSPECIALISED = ["length", "chunks"]


@triton.jit
def _real(mask, start, rows, length):
    """Which of the positions ``start + rows`` of a sample exist and are not padding. mask: at its row, or none."""
    real = (start + rows >= 0) & (start + rows < length)
    if mask is not None:
        real = real & (tl.load(mask + start + rows, mask=real, other=0) != 0)
    return real


@triton.jit
def _convolved(
    inputs, before, mask, weight, bias, channels, inside, start, length, row_stride,
    KERNEL: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """SiLU of the causal convolution at ROWS steps of one sample, (ROWS, channels) in float32; 0 at padding.

    inputs: at the first row and the convolution's first channel. before: at the sample, or none.
    inside: which channels exist. start: the first row's position.
    """
    steps = tl.arange(0, ROWS)
    # All taps of a channel at once: one by one they would be as many loads as the inputs.
    taps = tl.arange(0, TAPS)
    scales = tl.load(
        weight + channels[:, None] * KERNEL + taps[None, :],
        mask=inside[:, None] & (taps < KERNEL)[None, :],
        other=0.0,
    ).to(tl.float32)
    total = tl.zeros([ROWS, channels.shape[0]], dtype=tl.float32)
    # Rows shifted by one tap are the same but for one, so that all loads but the first hit the L1 cache.
    for tap in tl.static_range(KERNEL):
        scale = tl.sum(tl.where(taps[None, :] == tap, scales, 0.0), 1)
        rows = steps + (tap - KERNEL + 1)
        real = _real(mask, start, rows, length)
        value = tl.load(
            inputs + rows[:, None] * row_stride + channels[None, :],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        total += value.to(tl.float32) * scale[None, :]
        if before is not None:  # noqa: SIM102  known when compiled, the next is not
            if start == 0:  # here the first rows read what came before, whose last is position -1
                for row in tl.static_range(KERNEL - 1 - tap):
                    old = tl.load(before + channels * KERNEL + (row + tap + 1), mask=inside, other=0.0)
                    total += tl.where((steps == row)[:, None], (old.to(tl.float32) * scale)[None, :], 0.0)
    total += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)[None, :]
    silu = total * tl.sigmoid(total)
    return tl.where(_real(mask, start, steps, length)[:, None], silu, 0.0)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to the last bits of small values too, of which step sizes are made."""
    small = tl.exp(-tl.abs(x))
    one = 1.0 + small
    # log1p: what rounding to `one` lost of `small` is put back as a factor.
    log1p = tl.where(one == 1.0, small, tl.log(one) * (small / tl.where(one == 1.0, 1.0, one - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _chunk_states(
    projected, before, mask, weight, bias, dt_bias, A_log, xB, times, added,
    length, chunks, batch_stride, row_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, KERNEL: tl.constexpr,
    CHUNK: tl.constexpr, TAPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Step sizes and log decays of one chunk, its x and B after the convolution, and what it adds to the state.

    x and B are written for `_chunk_outputs`: to convolve them there again would save a tenth of the traffic and
    cost as much in arithmetic (tiles pad 80 channels to 128), and more where query heads share them.
    """
    D_INNER: tl.constexpr = HEADS * HEAD_DIM
    D_XB: tl.constexpr = KV_HEADS * HEAD_DIM
    REPEAT: tl.constexpr = HEADS // KV_HEADS
    head, chunk, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if before is not None:
        before += sample * (D_INNER + 2 * D_XB) * KERNEL
    if mask is not None:
        mask += sample * length
    steps = tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    inside = dims < HEAD_DIM
    dtype = projected.dtype.element_ty
    channels = (head // REPEAT) * HEAD_DIM + dims
    shift = tl.load(dt_bias + head).to(tl.float32)
    A = -tl.exp(tl.load(A_log + head).to(tl.float32))
    # What stands before row `start` lies in int64 scalars, the offsets after it fit into int32.
    start = chunk * CHUNK
    inputs = projected + sample * batch_stride + start.to(tl.int64) * row_stride + D_INNER
    kept = xB + (sample * length + start) * (2 * D_XB)
    step_sizes = times + (sample * HEADS + head) * chunks * CHUNK + start
    log_decays = step_sizes + tl.num_programs(2).to(tl.int64) * HEADS * chunks * CHUNK

    # A chunk goes by in blocks of a few rows, which leaves registers for the sum.
    total = tl.zeros([WIDTH, WIDTH], dtype=tl.float32)  # (head_dim of x, head_dim of B)
    passed = 0.0  # log decay of the chunk up to the block
    for _ in range(CHUNK // ROWS):
        exists = start + steps < length
        dt = tl.load(inputs + steps * row_stride + (D_INNER + 2 * D_XB + head), mask=exists, other=0.0)
        dt = softplus(dt.to(tl.float32) + shift)
        dt = tl.where(_real(mask, start, steps, length), dt, 0.0)  # no decay over padding either
        rates = dt * A
        tl.store(step_sizes + steps, dt)
        tl.store(log_decays + steps, passed + tl.cumsum(rates, 0))
        # Summed from the end: a difference of two long sums would lose the last steps, which weigh most.
        to_end = tl.exp(tl.cumsum(rates, 0, reverse=True) - rates)
        block = tl.sum(rates, 0)

        x = _convolved(
            inputs, before, mask, weight, bias, channels, inside, start, length, row_stride, KERNEL, TAPS, ROWS
        ).to(dtype)
        B = _convolved(
            inputs, before, mask, weight, bias, D_XB + channels, inside, start, length, row_stride,
            KERNEL, TAPS, ROWS,
        ).to(dtype)  # fmt: skip
        if head % REPEAT == 0:
            rows = kept + steps[:, None] * (2 * D_XB) + channels[None, :]
            tl.store(rows, x, mask=exists[:, None] & inside[None, :])
            tl.store(rows + D_XB, B, mask=exists[:, None] & inside[None, :])
        weighted = (x.to(tl.float32) * (dt * to_end)[:, None]).to(dtype)
        total = tl.dot(tl.trans(weighted), B, acc=total * tl.exp(block), input_precision="ieee")

        passed += block
        start += ROWS
        inputs += ROWS * row_stride
        kept += ROWS * 2 * D_XB
        step_sizes += ROWS
        log_decays += ROWS

    added += ((sample * chunks + chunk) * HEADS + head) * (HEAD_DIM * HEAD_DIM)
    tl.store(added + dims[:, None] * HEAD_DIM + dims[None, :], total, mask=inside[:, None] & inside[None, :])


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _pass_states(
    projected, before, mask, state, times, added, entering, state_after, conv_after,
    length, chunks, batch_stride, row_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, KERNEL: tl.constexpr,
    CHUNK: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The state entering each chunk and the last one, by tiles, and the convolution's last inputs.

    These have nothing to do with each other, but one launch does both: the last programs do the convolution's.
    """
    D_INNER: tl.constexpr = HEADS * HEAD_DIM
    CONV_WIDTH: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    SIZE: tl.constexpr = HEAD_DIM * HEAD_DIM
    TILES: tl.constexpr = (SIZE + TILE - 1) // TILE
    task, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, TILE)
    if task < HEADS * TILES:
        head = task // TILES
        element = (task % TILES) * TILE + lanes
        inside = element < SIZE
        of_head = (sample * HEADS + head) * SIZE + element
        current = tl.zeros([TILE], dtype=tl.float32)
        if state is not None:
            current = tl.load(state + of_head, mask=inside, other=0.0).to(tl.float32)
        offset = (sample * chunks * HEADS + head) * SIZE + element
        # The last log decay of a chunk is that of the whole chunk: steps past the end have dt = 0.
        lasts = times + ((tl.num_programs(1) + sample) * HEADS + head) * chunks * CHUNK + CHUNK - 1
        for _ in tl.range(0, chunks, num_stages=STAGES):
            more = tl.load(added + offset, mask=inside, other=0.0)
            decay = tl.exp(tl.load(lasts))
            tl.store(entering + offset, current.to(entering.dtype.element_ty), mask=inside)
            current = current * decay + more
            offset += HEADS * SIZE
            lasts += CHUNK
        tl.store(state_after + of_head, current, mask=inside)
    else:
        channels = (task - HEADS * TILES) * TILE + lanes
        inside = channels < CONV_WIDTH
        end = length  # one past the last real position
        if mask is not None:
            mask += sample * length
            last = tl.zeros([TILE], dtype=tl.int32)
            for first in range(0, length, TILE):
                real = tl.load(mask + first + lanes, mask=first + lanes < length, other=0) != 0
                last = tl.maximum(last, tl.where(real, first + lanes + 1, 0))
            end = tl.max(last, 0)
        inputs = projected + sample * batch_stride + D_INNER + channels
        for tap in tl.static_range(KERNEL):
            at = end - KERNEL + tap
            real = at >= 0
            if mask is not None:
                real = real & (tl.load(mask + at, mask=real, other=0) != 0)
            value = tl.load(inputs + at.to(tl.int64) * row_stride, mask=inside & real, other=0.0)
            slot = (sample * CONV_WIDTH + channels) * KERNEL
            if before is not None:
                old = tl.load(before + slot + (end + tap), mask=inside & (at < 0), other=0.0)
                value = tl.where(at < 0, old.to(value.dtype), value)
            tl.store(conv_after + slot + tap, value, mask=inside)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _chunk_outputs(
    projected, before, mask, weight, bias, xB, times, entering, D, norm_weight, y,
    length, chunks, batch_stride, row_stride, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, KERNEL: tl.constexpr,
    CHUNK: tl.constexpr, TAPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of one head, from the steps of their chunk and the state entering it; gated and normed."""
    D_INNER: tl.constexpr = HEADS * HEAD_DIM
    D_XB: tl.constexpr = KV_HEADS * HEAD_DIM
    head, block, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = block * ROWS
    chunk = start // CHUNK
    first_row = projected + sample * batch_stride + start.to(tl.int64) * row_stride
    if before is not None:
        before += sample * (D_INNER + 2 * D_XB) * KERNEL
    if mask is not None:
        mask += sample * length
    dtype = projected.dtype.element_ty
    steps = tl.arange(0, ROWS)
    dims = tl.arange(0, WIDTH)
    inside = dims < HEAD_DIM
    channels = head * HEAD_DIM + dims
    C = _convolved(
        first_row + D_INNER, before, mask, weight, bias, 2 * D_XB + channels, inside, start, length, row_stride,
        KERNEL, TAPS, ROWS,
    ).to(dtype)  # fmt: skip
    step_sizes = times + (sample * HEADS + head) * chunks * CHUNK
    log_decays = step_sizes + tl.num_programs(2).to(tl.int64) * HEADS * chunks * CHUNK
    log_decay = tl.load(log_decays + start + steps)

    # y_i = exp(l_i) C_i h + sum_{j <= i} exp(l_i - l_j) (C_i . B_j) dt_j x_j. The future is masked before the
    # exponential, which would overflow there.
    entering += ((sample * chunks + chunk) * HEADS + head) * (HEAD_DIM * HEAD_DIM)
    h = tl.load(
        entering + dims[:, None] * HEAD_DIM + dims[None, :], mask=inside[:, None] & inside[None, :], other=0.0
    )
    out = tl.dot(C, tl.trans(h), input_precision="ieee") * tl.exp(log_decay)[:, None]
    offsets = steps[:, None] * (2 * D_XB) + ((head // (HEADS // KV_HEADS)) * HEAD_DIM + dims)[None, :]
    kept = xB + (sample * length + chunk * CHUNK) * (2 * D_XB)
    for column in tl.range(chunk * CHUNK, start + 1, ROWS):
        there = (column + steps < length)[:, None] & inside[None, :]
        B = tl.load(kept + D_XB + offsets, mask=there, other=0.0)
        x = tl.load(kept + offsets, mask=there, other=0.0)
        gaps = log_decay[:, None] - tl.load(log_decays + column + steps)[None, :]
        gaps = tl.where(start + steps[:, None] >= column + steps[None, :], gaps, float("-inf"))
        scores = tl.dot(C, tl.trans(B), input_precision="ieee") * tl.exp(gaps)
        scores *= tl.load(step_sizes + column + steps)[None, :]
        out = tl.dot(scores.to(dtype), x, acc=out, input_precision="ieee")
        kept += ROWS * 2 * D_XB

    exists = (start + steps < length)[:, None] & inside[None, :]
    x = tl.load(xB + (sample * length + start) * (2 * D_XB) + offsets, mask=exists, other=0.0)
    out += x.to(tl.float32) * tl.load(D + head).to(tl.float32)
    z = tl.load(first_row + steps[:, None] * row_stride + channels[None, :], mask=exists, other=0.0)
    z = z.to(tl.float32)
    out = out * z * tl.sigmoid(z)
    # Channels that pad the tile are 0 throughout and add nothing to the mean.
    out *= tl.rsqrt(tl.sum(out * out, 1) / HEAD_DIM + eps)[:, None]
    out *= tl.load(norm_weight + channels, mask=inside, other=0.0).to(tl.float32)[None, :]
    outputs = y + (sample * length + start) * D_INNER + steps[:, None] * D_INNER + channels[None, :]
    tl.store(outputs, out.to(dtype), mask=exists)
