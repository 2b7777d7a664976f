"""The mixer on mamba-ssm's kernels against the torch reference in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from matvlm.models.hybrid_phi import HybridPhiConfig
from matvlm.models.mixer import Mamba2Mixer
from matvlm.ops.choose import MAMBA_SSM, kernel_path

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
HIDDEN = 128


def make(dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int) -> tuple[Mamba2Mixer, Mamba2Mixer]:
    """A mixer, and the same with its weights in float64."""
    torch.manual_seed(0)
    mixer = Mamba2Mixer(HIDDEN, heads, kv_heads, head_dim, layer_idx=0)
    with torch.no_grad():  # states that matter and last, beside a skip: else the norm hides what their sizes do
        mixer.dt_bias.normal_()
        mixer.A_log.uniform_(-4, 0)
        mixer.D.normal_()
        mixer.conv1d.weight.normal_()
    mixer = mixer.to("cuda", dtype)
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
    # Of one step alone they change the output's size and not its direction, and the norm takes size away.
    none = {"A_log", "D", "dt_bias"} if length == 1 else set()
    errors |= {name: error(weight.grad, other.grad) for (name, weight), other in pairs if name not in none}
    assert max(errors.values()) < BOUNDS[dtype], errors


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
