"""Matrix-vector products of a decoder layer, with what stands before and after them.

The bytes of the weights are what these cost; each is read once, by programs that hold a few rows of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

ROWS, COLUMNS, WARPS, STAGES = 16, 256, 4, 4
"""Tile of a weight in elements, warps and pipeline stages of a program: the best of benchmarks/decode_kernels.py on
an H100."""
BATCH_TILE = 16
"""Least width of a product on tensor cores."""


@triton.jit
def _rows_of(pid, wa, wb, wc, wd, ba, bb, bc, bd, na, nb, nc, nd, BN: tl.constexpr):
    """Which of four stacked weights a program works on: pointers, rows, first row, and the rows before them."""
    w, b, n, local, base = wa, ba, na, pid, 0
    if local >= tl.cdiv(na, BN):
        w, b, n, local, base = wb, bb, nb, local - tl.cdiv(na, BN), na
        if local >= tl.cdiv(nb, BN):
            w, b, n, local, base = wc, bc, nc, local - tl.cdiv(nb, BN), na + nb
            if local >= tl.cdiv(nc, BN):
                w, b, n, local, base = wd, bd, nd, local - tl.cdiv(nc, BN), na + nb + nc
    return w, b, n, local, base


@triton.jit
def _norm_linear_kernel(
    x,
    gamma,
    beta,
    wa,
    wb,
    wc,
    wd,
    ba,
    bb,
    bc,
    bd,
    out,
    mid,
    batch,
    na,
    nb,
    nc,
    nd,
    out_stride,
    mid_stride,
    mid_start,
    eps,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    pid = tl.program_id(0)
    w, b, n, local, base = _rows_of(pid, wa, wb, wc, wd, ba, bb, bc, bd, na, nb, nc, nd, BN)
    last = base == na + nb + nc  # the MLP's weight
    rows = local * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)

    total = tl.zeros([BM], tl.float32)
    square = tl.zeros([BM], tl.float32)
    for start in range(0, K, BK):
        inside = (m[:, None] < batch) & (start + k[None, :] < K)
        tile = tl.load(x + m[:, None] * K + start + k[None, :], mask=inside, other=0.0)
        total += tl.sum(tile, 1)
        square += tl.sum(tile * tile, 1)
    mean = total / K
    rstd = tl.rsqrt(square / K - mean * mean + eps)

    acc = tl.zeros([BN, BM], tl.float32)
    for start in range(0, K, BK):
        column = start + k
        weight = tl.load(
            w + rows[:, None].to(tl.int64) * K + column[None, :],
            mask=(rows[:, None] < n) & (column[None, :] < K),
            other=0.0,
        )
        inside = (m[None, :] < batch) & (column[:, None] < K)
        tile = tl.load(x + m[None, :] * K + column[:, None], mask=inside, other=0.0)
        scale = tl.load(gamma + column, mask=column < K, other=0.0).to(tl.float32)
        shift = tl.load(beta + column, mask=column < K, other=0.0).to(tl.float32)
        normed = (tile - mean[None, :]) * rstd[None, :] * scale[:, None] + shift[:, None]
        if BM == 1:
            acc += tl.sum(weight.to(tl.float32) * tl.trans(normed), 1, keep_dims=True)
        else:
            acc = tl.dot(weight, normed.to(weight.dtype), acc, input_precision="ieee")

    inside = (rows[:, None] < n) & (m[None, :] < batch)
    if BIAS or last:
        acc += tl.load(b + rows, mask=rows < n, other=0.0).to(tl.float32)[:, None]
    if last & (nd > 0):
        inner = 0.7978845608028654 * (acc + 0.044715 * acc * acc * acc)
        acc = acc * tl.sigmoid(2 * inner)  # GELU in its tanh form: (1 + tanh(u)) / 2 = sigmoid(2 u)
        tl.store(mid + m[None, :] * mid_stride + mid_start + rows[:, None], acc, mask=inside)
    else:
        tl.store(out + m[None, :] * out_stride + base + rows[:, None], acc, mask=inside)


@triton.jit
def _partial(acc, x, w, m, rows, batch, n, x_stride, K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    k = tl.arange(0, BK)
    for start in range(0, K, BK):
        column = start + k
        weight = tl.load(
            w + rows[:, None].to(tl.int64) * K + column[None, :],
            mask=(rows[:, None] < n) & (column[None, :] < K),
            other=0.0,
        )
        inside = (m[None, :] < batch) & (column[:, None] < K)
        tile = tl.load(x + m[None, :] * x_stride + column[:, None], mask=inside, other=0.0)
        if BM == 1:
            acc += tl.sum(weight.to(tl.float32) * tl.trans(tile.to(tl.float32)), 1, keep_dims=True)
        else:
            acc = tl.dot(weight, tile, acc, input_precision="ieee")
    return acc


@triton.jit
def _add_linear_kernel(
    x,
    wa,
    wb,
    ba,
    bb,
    residual,
    batch,
    n,
    x_stride,
    KA: tl.constexpr,
    KB: tl.constexpr,
    BIAS_A: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    acc = tl.zeros([BN, BM], tl.float32)
    acc = _partial(acc, x, wa, m, rows, batch, n, x_stride, KA, BM, BK)
    acc = _partial(acc, x + KA, wb, m, rows, batch, n, x_stride, KB, BM, BK)
    acc += tl.load(bb + rows, mask=rows < n, other=0.0).to(tl.float32)[:, None]
    if BIAS_A:
        acc += tl.load(ba + rows, mask=rows < n, other=0.0).to(tl.float32)[:, None]
    inside = (rows[:, None] < n) & (m[None, :] < batch)
    place = residual + m[None, :] * n + rows[:, None]
    tl.store(place, tl.load(place, mask=inside, other=0.0) + acc, mask=inside)


def norm_linear(
    x: Tensor,
    norm: nn.LayerNorm,
    linears: Sequence[nn.Linear],
    out: Tensor,
    mlp: nn.Linear | None = None,
    mid: Tensor | None = None,
) -> None:
    """LayerNorm, then up to three projections side by side, then an MLP's first half beside them.

    Args:
        x: (b, d) float32, the residual stream. norm: over d.
        linears: of d inputs, all with biases or none. out: (b, at least the sum of their outputs), filled from the left.
        mlp: of d inputs, with bias; its outputs, through GELU (tanh), fill the right end of ``mid`` (b, c).
    """
    weights = [linear.weight for linear in linears]
    biases = [linear.bias for linear in linears]
    counts = [len(weight) for weight in weights]
    while len(weights) < 3:
        weights.append(weights[0])
        biases.append(biases[0])
        counts.append(0)
    last = linears[0] if mlp is None else mlp
    hidden = 0 if mlp is None else len(mlp.weight)
    mid = out if mid is None else mid
    biased = biases[0] is not None
    biases = [weight if bias is None else bias for weight, bias in zip(weights, biases, strict=True)]
    rows = sum(triton.cdiv(count, ROWS) for count in (*counts, hidden))
    _norm_linear_kernel[(rows,)](
        x,
        norm.weight,
        norm.bias,
        *weights,
        last.weight,
        *biases,
        last.weight if last.bias is None else last.bias,
        out,
        mid,
        len(x),
        *counts,
        hidden,
        out.stride(0),
        mid.stride(0),
        mid.shape[1] - hidden,
        norm.eps,
        K=x.shape[1],
        BIAS=biased,
        BM=_tile(len(x)),
        BN=ROWS,
        BK=_columns(x.shape[1]),
        num_warps=WARPS,
        num_stages=STAGES,
    )


def add_linear(x: Tensor, first: nn.Linear, second: nn.Linear, residual: Tensor) -> None:
    """Two projections of neighbouring inputs, added to the residual stream in place.

    Args:
        x: (b, inputs of ``first``, then of ``second``) in the type of the weights. second: with bias.
        residual: (b, d) float32.
    """
    bias = second.bias if first.bias is None else first.bias
    outputs, inputs = first.weight.shape
    _add_linear_kernel[(triton.cdiv(outputs, ROWS),)](
        x,
        first.weight,
        second.weight,
        bias,
        second.bias,
        residual,
        len(x),
        outputs,
        x.stride(0),
        KA=inputs,
        KB=second.weight.shape[1],
        BIAS_A=first.bias is not None,
        BM=_tile(len(x)),
        BN=ROWS,
        BK=_columns(inputs),
        num_warps=WARPS,
        num_stages=STAGES,
    )


def _tile(batch: int) -> int:
    """Width of the tile that holds a batch."""
    return 1 if batch == 1 else BATCH_TILE


def _columns(inputs: int) -> int:
    return min(COLUMNS, triton.next_power_of_2(inputs))


def weights_contiguous(linears: Sequence[nn.Linear]) -> bool:
    """Whether the kernels can read these weights, which they take for contiguous."""
    return all(linear.weight.is_contiguous() and linear.weight.dtype != torch.float64 for linear in linears)
