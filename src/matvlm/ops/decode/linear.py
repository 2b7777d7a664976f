"""Matrix-vector products of a decoder layer, with what stands before and after them.

The bytes of the weights are what these cost. Each is read once, by programs that hold a few of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor, nn
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from matvlm.ops.decode.launch import overlapped


class Tile(NamedTuple):
    """Rows and columns of a weight that a program holds at a time, its warps, and tiles on their way to it."""

    rows: int
    columns: int
    warps: int
    stages: int


# The best of those tried on an H100 at Phi-2's sizes (docs/profiling.md).
ONE = Tile(4, 512, 2, 4)
SEVERAL = Tile(32, 128, 2, 5)
BATCH_TILE = 16
"""Least width of a product on tensor cores."""


@triton.jit
def _norm_kernel(x, gamma, beta, out, eps, K: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    k = tl.arange(0, BK)
    row = tl.program_id(0) * K
    value = tl.load(x + row + k, mask=k < K, other=0.0)
    mean = tl.sum(value, 0) / K
    centred = tl.where(k < K, value - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / K + eps)
    scale = tl.load(gamma + k, mask=k < K, other=0.0).to(tl.float32)
    shift = tl.load(beta + k, mask=k < K, other=0.0).to(tl.float32)
    tl.store(out + row + k, centred * rstd * scale + shift, mask=k < K)


@triton.jit
def _weight_tile(w, rows, n, column, K: tl.constexpr, BK: tl.constexpr):
    """(rows, columns) of w (n, K); zeros beyond it."""
    inside = rows[:, None] < n
    if K % BK != 0:
        inside = inside & (column[None, :] < K)
    return tl.load(w + rows[:, None].to(tl.int64) * K + column[None, :], mask=inside, other=0.0)


@triton.jit
def _product(
    first,
    x,
    x_stride,
    w,
    rows,
    n,
    batch,
    K: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """``w[rows] x^T``, (rows, BM) in float32, of x (batch, K); ``first``: the first tile of w, loaded before."""
    k = tl.arange(0, BK)
    if BM == 1:
        total = first.to(tl.float32) * tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        for start in tl.range(BK, K, BK, num_stages=STAGES):
            weight = _weight_tile(w, rows, n, start + k, K, BK)
            value = tl.load(x + start + k, mask=start + k < K, other=0.0)
            total += weight.to(tl.float32) * value.to(tl.float32)[None, :]
        return tl.sum(total, 1, keep_dims=True)
    else:
        m = tl.arange(0, BM)
        place = x + m[None, :] * x_stride + k[:, None]
        value = tl.load(place, mask=(m[None, :] < batch) & (k[:, None] < K), other=0.0)
        total = tl.dot(first, value, input_precision="ieee")
        for start in tl.range(BK, K, BK, num_stages=STAGES):
            weight = _weight_tile(w, rows, n, start + k, K, BK)
            inside = (m[None, :] < batch) & (start + k[:, None] < K)
            value = tl.load(place + start, mask=inside, other=0.0)
            total = tl.dot(weight, value, total, input_precision="ieee")
        return total


@triton.jit
def _from_stream_kernel(
    x,
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
    K: tl.constexpr,
    BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    # Which of the four weights, one on the other, this program works on.
    w, b, n, local, base = wa, ba, na, tl.program_id(0), 0
    if local >= tl.cdiv(na, BN):
        w, b, n, local, base = wb, bb, nb, local - tl.cdiv(na, BN), na
        if local >= tl.cdiv(nb, BN):
            w, b, n, local, base = wc, bc, nc, local - tl.cdiv(nb, BN), na + nb
            if local >= tl.cdiv(nc, BN):
                w, b, n, local, base = wd, bd, nd, local - tl.cdiv(nc, BN), na + nb + nc
    last = (nd > 0) & (base == na + nb + nc)
    rows = local * BN + tl.arange(0, BN)
    first = _weight_tile(w, rows, n, tl.arange(0, BK), K, BK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = _product(first, x, K, w, rows, n, batch, K, BM, BK, STAGES)
    m = tl.arange(0, BM)
    inside = (rows[:, None] < n) & (m[None, :] < batch)
    if BIAS or last:
        total += tl.load(b + rows, mask=rows < n, other=0.0).to(tl.float32)[:, None]
    if last:
        inner = 0.7978845608028654 * (total + 0.044715 * total * total * total)
        total = total * tl.sigmoid(2 * inner)  # GELU in its tanh form: (1 + tanh(u)) / 2 = sigmoid(2 u)
        tl.store(mid + m[None, :] * mid_stride + mid_start + rows[:, None], total, mask=inside)
    else:
        tl.store(out + m[None, :] * out_stride + base + rows[:, None], total, mask=inside)


@triton.jit
def _to_stream_kernel(
    x,
    wa,
    wb,
    ba,
    bb,
    stream,
    batch,
    n,
    x_stride,
    KA: tl.constexpr,
    KB: tl.constexpr,
    BIAS_A: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    first = _weight_tile(wb, rows, n, k, KB, BK)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = _product(first, x + KA, x_stride, wb, rows, n, batch, KB, BM, BK, STAGES)
    total += _product(_weight_tile(wa, rows, n, k, KA, BK), x, x_stride, wa, rows, n, batch, KA, BM, BK, STAGES)
    total += tl.load(bb + rows, mask=rows < n, other=0.0).to(tl.float32)[:, None]
    if BIAS_A:
        total += tl.load(ba + rows, mask=rows < n, other=0.0).to(tl.float32)[:, None]
    inside = (rows[:, None] < n) & (m[None, :] < batch)
    place = stream + m[None, :] * n + rows[:, None]
    tl.store(place, tl.load(place, mask=inside, other=0.0) + total, mask=inside)


def norm(stream: Tensor, module: nn.LayerNorm, out: Tensor) -> None:
    """LayerNorm of the residual stream (b, d) float32, into ``out`` (b, d) of any type."""
    width = stream.shape[1]
    _norm_kernel[(len(stream),)](
        stream,
        module.weight,
        module.bias,
        out,
        module.eps,
        K=width,
        BK=triton.next_power_of_2(width),
        num_warps=8,
        **overlapped(stream),
    )


def from_stream(
    x: Tensor, linears: Sequence[nn.Linear], out: Tensor, mlp: nn.Linear | None = None, mid: Tensor | None = None
) -> None:
    """Up to three projections side by side, and the first half of an MLP beside them.

    Args:
        x: (b, d) in the type of the weights. linears: of d inputs, all with biases or none.
        out: (b, at least the sum of their outputs), filled from the left.
        mlp: of d inputs, with bias; its outputs, through GELU (tanh), fill the right end of ``mid`` (b, c).
    """
    weights = [linear.weight for linear in linears]
    biases = [linear.bias for linear in linears]
    counts = [len(weight) for weight in weights] + [0] * (3 - len(weights))
    unused = [weights[0]] * (3 - len(weights))
    last = linears[0] if mlp is None else mlp
    hidden = 0 if mlp is None else len(mlp.weight)
    mid = out if mid is None else mid
    biased = biases[0] is not None
    biases = [*(biases if biased else weights), *unused]
    settings = _settings(x)
    _from_stream_kernel[(sum(triton.cdiv(count, settings["BN"]) for count in (*counts, hidden)),)](
        x,
        *weights,
        *unused,
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
        K=x.shape[1],
        BIAS=biased,
        **settings,
    )


def to_stream(x: Tensor, first: nn.Linear, second: nn.Linear, stream: Tensor) -> None:
    """Two projections of neighbouring inputs, added to the residual stream in place.

    Args:
        x: (b, inputs of ``first``, then of ``second``) in the type of the weights. second: with bias.
        stream: (b, d) float32.
    """
    outputs, inputs = first.weight.shape
    settings = _settings(x)
    _to_stream_kernel[(triton.cdiv(outputs, settings["BN"]),)](
        x,
        first.weight,
        second.weight,
        second.bias if first.bias is None else first.bias,
        second.bias,
        stream,
        len(x),
        outputs,
        x.stride(0),
        KA=inputs,
        KB=second.weight.shape[1],
        BIAS_A=first.bias is not None,
        **settings,
    )


def _settings(x: Tensor) -> dict[str, int | bool]:
    tile = ONE if len(x) == 1 else SEVERAL
    return {
        "BM": 1 if len(x) == 1 else BATCH_TILE,
        "BN": tile.rows,
        "BK": tile.columns,
        "STAGES": tile.stages,
        "num_warps": tile.warps,
        **overlapped(x),
    }
