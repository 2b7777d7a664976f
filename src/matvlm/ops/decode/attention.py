"""Attention of one new position over a cache of keys and values, which it also enters.

The bytes of the cache are what this costs. The positions are shared out over many programs, each of which keeps
its own running maximum and sum (flash decoding), and a second kernel joins them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from matvlm.ops.decode.launch import overlapped

BLOCK, WARPS, STAGES = 64, 2, 2
"""Positions that a program looks at at a time, its warps, and blocks on their way to it."""
PROGRAMS = 1056
"""Programs to aim at: eight for each multiprocessor of an H100."""
SHORTEST = 128
"""Positions that a program looks at, at least."""
JOINED = 16
"""Parts that are joined at a time."""


@triton.jit
def _rotated(row, d, cos, sin, D: tl.constexpr, ROT: tl.constexpr):
    """Channels ``d`` of one head, the first ROT of them rotated; zeros beyond D."""
    half: tl.constexpr = ROT // 2
    turned = d < ROT
    partner = tl.where(d < half, d + half, d - half)
    here = tl.load(row + d, mask=d < D, other=0.0).to(tl.float32)
    there = tl.load(row + partner, mask=turned, other=0.0).to(tl.float32)
    there = tl.where(d < half, -there, there)
    c = tl.load(cos + d, mask=turned, other=1.0)
    s = tl.load(sin + d, mask=turned, other=0.0)
    return here * c + there * s


@triton.jit
def _part(cache, place, d, seen, D: tl.constexpr):
    """Channels ``d`` of the positions at ``place``."""
    inside = seen[:, None] & (d[None, :] < D)
    return tl.load(cache + place[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _attend_kernel(
    proj,
    keys,
    values,
    cos,
    sin,
    begins,
    position,
    parts,
    stats,
    heads,
    kv_heads,
    capacity,
    span,
    proj_stride,
    scale,
    D: tl.constexpr,
    ROT: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    BL: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    # Head sizes such as 80 are no power of two, which tiles must be: channels come in two parts, 64 and 16.
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    split, head, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pos = tl.load(position).to(tl.int32)
    low = split * span
    if low <= pos:
        begin = tl.load(begins + sample).to(tl.int32)
        group = heads // kv_heads
        kv_head = head // group
        d1 = tl.arange(0, D1)
        d2 = D1 + tl.arange(0, D2)
        row = proj + sample * proj_stride
        angle = (pos - begin) * ROT
        query1 = _rotated(row + head * D, d1, cos + angle, sin + angle, D, ROT) * scale
        query2 = _rotated(row + head * D, d2, cos + angle, sin + angle, D, ROT) * scale
        offset = (sample * kv_heads + kv_head).to(tl.int64) * capacity * D
        high = tl.minimum(low + span, pos)  # the new position itself is not in the cache yet

        best = -1.0e30
        total = 0.0
        acc1 = tl.zeros([D1], tl.float32)
        acc2 = tl.zeros([D2], tl.float32)
        for start in tl.range(low, high, BL, num_stages=STAGES):
            index = start + tl.arange(0, BL)
            seen = (index < high) & (index >= begin)
            place = offset + index.to(tl.int64) * D
            score = tl.sum(_part(keys, place, d1, seen, D) * query1[None, :], 1)
            if D1 < D:
                score += tl.sum(_part(keys, place, d2, seen, D) * query2[None, :], 1)
            score = tl.where(seen, score, -1.0e30)
            higher = tl.maximum(best, tl.max(score, 0))
            weight = tl.where(seen, tl.exp(score - higher), 0.0)
            kept = tl.exp(best - higher)
            total = total * kept + tl.sum(weight, 0)
            acc1 = acc1 * kept + tl.sum(weight[:, None] * _part(values, place, d1, seen, D), 0)
            if D1 < D:
                acc2 = acc2 * kept + tl.sum(weight[:, None] * _part(values, place, d2, seen, D), 0)
            best = higher

        if pos < low + span:  # this program has the new position
            at = row + (heads + kv_head) * D
            key1 = _rotated(at, d1, cos + angle, sin + angle, D, ROT).to(keys.dtype.element_ty)
            key2 = _rotated(at, d2, cos + angle, sin + angle, D, ROT).to(keys.dtype.element_ty)
            value1 = tl.load(at + kv_heads * D + d1).to(values.dtype.element_ty)
            value2 = tl.load(at + kv_heads * D + d2, mask=d2 < D, other=0.0).to(values.dtype.element_ty)
            if head % group == 0:
                place = offset + pos.to(tl.int64) * D
                tl.store(keys + place + d1, key1)
                tl.store(keys + place + d2, key2, mask=d2 < D)
                tl.store(values + place + d1, value1)
                tl.store(values + place + d2, value2, mask=d2 < D)
            score = tl.sum(key1.to(tl.float32) * query1, 0) + tl.sum(key2.to(tl.float32) * query2, 0)
            higher = tl.maximum(best, score)
            weight = tl.exp(score - higher)
            kept = tl.exp(best - higher)
            total = total * kept + weight
            acc1 = acc1 * kept + weight * value1.to(tl.float32)
            acc2 = acc2 * kept + weight * value2.to(tl.float32)
            best = higher

        part = (sample * heads + head) * tl.num_programs(0) + split
        tl.store(parts + part * D + d1, acc1)
        tl.store(parts + part * D + d2, acc2, mask=d2 < D)
        tl.store(stats + part * 2, best)
        tl.store(stats + part * 2 + 1, total)


@triton.jit
def _join_kernel(
    parts,
    stats,
    position,
    out,
    heads,
    span,
    splits,
    out_stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    BS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    head, sample = tl.program_id(0), tl.program_id(1)
    used = tl.load(position).to(tl.int32) // span + 1
    d = tl.arange(0, BD)
    first = (sample * heads + head) * splits
    best = -1.0e30
    total = 0.0
    acc = tl.zeros([BD], tl.float32)
    for start in range(0, used, BS):
        part = start + tl.arange(0, BS)
        real = part < used
        peak = tl.load(stats + (first + part) * 2, mask=real, other=-1.0e30)
        count = tl.load(stats + (first + part) * 2 + 1, mask=real, other=0.0)
        inside = real[:, None] & (d[None, :] < D)
        value = tl.load(parts + (first + part)[:, None] * D + d[None, :], mask=inside, other=0.0)
        higher = tl.maximum(best, tl.max(peak, 0))
        weight = tl.where(real, tl.exp(peak - higher), 0.0)
        kept = tl.exp(best - higher)
        total = total * kept + tl.sum(weight * count, 0)
        acc = acc * kept + tl.sum(weight[:, None] * value, 0)
        best = higher
    tl.store(out + sample * out_stride + head * D + d, acc / total, mask=d < D)


class Workspace:
    """Where the programs of one step leave their parts; all layers share it.

    Args:
        capacity: positions of the cache. head_dim: of queries, keys and values.
    """

    def __init__(self, batch: int, heads: int, head_dim: int, capacity: int, device: torch.device) -> None:
        fair = triton.cdiv(capacity * batch * heads, PROGRAMS)
        self.span = max(SHORTEST, triton.next_power_of_2(fair) // 2)
        self.splits = triton.cdiv(capacity, self.span)
        self.parts = torch.empty((batch, heads, self.splits, head_dim), device=device)
        self.stats = torch.empty((batch, heads, self.splits, 2), device=device)


def attend(
    projected: Tensor,
    keys: Tensor,
    values: Tensor,
    rotary: tuple[Tensor, Tensor],
    begins: Tensor,
    position: Tensor,
    out: Tensor,
    workspace: Workspace,
) -> None:
    """One position's attention.

    Args:
        projected: (b, at least (heads + 2 kv_heads) head_dim): queries, keys and values before their rotation.
        keys, values: (b, kv_heads, capacity, head_dim), contiguous; the new ones are entered at ``position``.
        rotary: cosines and sines, each (capacity, rotated channels) float32.
        begins: (b,) first position of each sequence that is no padding.
        position: () of the new token in the cache.
        out: (b, at least heads head_dim), filled from the left.
    """
    batch, kv_heads, capacity, head_dim = keys.shape
    heads, splits = workspace.parts.shape[1:3]
    cos, sin = rotary
    block = triton.next_power_of_2(head_dim)
    whole = block if block == head_dim else block // 2
    _attend_kernel[(splits, heads, batch)](
        projected,
        keys,
        values,
        cos,
        sin,
        begins,
        position,
        workspace.parts,
        workspace.stats,
        heads,
        kv_heads,
        capacity,
        workspace.span,
        projected.stride(0),
        head_dim**-0.5,
        D=head_dim,
        ROT=cos.shape[1],
        D1=whole,
        D2=max(16, triton.next_power_of_2(head_dim - whole)),
        BL=BLOCK,
        STAGES=STAGES,
        num_warps=WARPS,
        **overlapped(projected),
    )
    _join_kernel[(heads, batch)](
        workspace.parts,
        workspace.stats,
        position,
        out,
        heads,
        workspace.span,
        splits,
        out.stride(0),
        D=head_dim,
        BD=block,
        BS=JOINED,
        num_warps=WARPS,
        **overlapped(projected),
    )
