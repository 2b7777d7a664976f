"""The mixer on mamba-ssm's kernels against the torch reference in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from matvlm.models.hybrid_phi import HybridPhiConfig
from matvlm.models.mixer import Mamba2Mixer
from matvlm.ops import torch_path
from matvlm.ops.choose import MAMBA_SSM, kernel_path

mamba_path = pytest.importorskip("matvlm.ops.mamba_path", exc_type=ImportError)
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
HIDDEN = 128


def make(dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int) -> tuple[Mamba2Mixer, Mamba2Mixer]:
    """A mixer, and the same with its weights in float64."""
    torch.manual_seed(0)
    mixer = Mamba2Mixer(HIDDEN, heads, kv_heads, head_dim, layer_idx=0).to("cuda", dtype)
    assert kernel_path("cuda") == MAMBA_SSM
    return mixer, copy.deepcopy(mixer).double()


def inputs(batch: int, length: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, length, HIDDEN, device="cuda", dtype=dtype)


def error(found: Tensor, reference: Tensor) -> float:
    return float((found.double() - reference).norm() / reference.norm())


def new_cache(mixer: Mamba2Mixer) -> DynamicCache:
    config = HybridPhiConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    return DynamicCache(config=config)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(32, 4, 4), (64, 4, 4), (80, 4, 4), (64, 6, 2)])
@pytest.mark.parametrize("length", [1, 63, 500, 1428, 8192])
def test_forward_and_backward(length: int, head_dim: int, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    mixer, reference = make(dtype, head_dim, heads, kv_heads)
    x = inputs(2, length, dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    found, wanted = mixer(x), reference(exact)
    assert error(found, wanted) < BOUNDS[dtype]
    torch.manual_seed(2)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (wanted * weight.double()).sum().backward()
    errors = {"x": error(x.grad, exact.grad)}
    pairs = zip(mixer.named_parameters(), reference.parameters(), strict=True)
    # These change the output's size more than its direction, and the norm takes size away: of one step nothing is
    # left of their gradients, and of more so little that in bfloat16 it is rounding. `test_scan` has them without.
    none = {"A_log", "D", "dt_bias"} if length == 1 or dtype is torch.bfloat16 else set()
    errors |= {name: error(weight.grad, other.grad) for (name, weight), other in pairs if name not in none}
    assert max(errors.values()) < BOUNDS[dtype], errors


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 80])
@pytest.mark.parametrize("length", [63, 1428])
def test_scan(length: int, head_dim: int, dtype: torch.dtype) -> None:
    """The scan by itself, with a state before it: outputs, last state, and gradients by everything."""
    torch.manual_seed(0)
    shape, heads = (2, length, 4, head_dim), 4
    x, B, C = (torch.randn(shape, device="cuda").to(dtype) for _ in range(3))
    dt = torch.rand(2, length, heads, device="cuda") * 0.1
    A, D = -torch.rand(heads, device="cuda") - 0.1, torch.randn(heads, device="cuda")
    state = torch.randn(2, heads, head_dim, head_dim, device="cuda")
    given = [t.requires_grad_() for t in (x, dt, A, B, C, D, state)]
    exact = [t.detach().double().requires_grad_() for t in given]
    found, wanted = mamba_path.scan(*given, 256), torch_path.scan(*exact, 64)
    assert error(found[0], wanted[0]) < BOUNDS[dtype]
    assert error(found[1], wanted[1]) < BOUNDS[dtype]
    weights = [torch.randn(t.shape, device="cuda").to(t.dtype) for t in found]
    sum((a * w).double().sum() for a, w in zip(found, weights, strict=True)).backward()
    sum((a * w.double()).sum() for a, w in zip(wanted, weights, strict=True)).backward()
    errors = [error(a.grad, b.grad) for a, b in zip(given, exact, strict=True)]
    assert max(errors) < BOUNDS[dtype], errors


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch(side: str, dtype: torch.dtype) -> None:
    mixer, reference = make(dtype, 80, 4, 4)
    x, mask = inputs(3, 150, dtype), torch.ones(3, 150, device="cuda", dtype=torch.long)
    for row, count in enumerate((0, 17, 149)):
        mask[row, slice(0, count) if side == "left" else slice(150 - count, 150)] = 0
    found, wanted = mixer(x, mask), reference(x.double(), mask)
    real = mask.bool()
    assert error(found[real], wanted[real]) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(32, 4, 4), (80, 4, 4), (64, 6, 2)])
@pytest.mark.parametrize("length", [1, 63, 500])
@torch.no_grad()
def test_state_from_prefill_to_decode(
    length: int, head_dim: int, heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    """Prefill, another piece, then single steps, against one pass over all of it."""
    mixer, reference = make(dtype, head_dim, heads, kv_heads)
    x = inputs(2, length + 12, dtype)
    cache, parts = new_cache(mixer), [length, 5, *[1] * 7]
    pieces = [mixer(piece, cache=cache) for piece in x.split(parts, dim=1)]
    assert error(torch.cat(pieces, 1), reference(x.double())) < BOUNDS[dtype]
    exact = new_cache(reference)
    reference(x.double(), cache=exact)
    state, wanted = cache.layers[0].recurrent_states[0], exact.layers[0].recurrent_states[0]
    assert error(state, wanted) < BOUNDS[dtype]
    assert error(cache.layers[0].conv_states[0], exact.layers[0].conv_states[0]) < BOUNDS[dtype]
