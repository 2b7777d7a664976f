"""The fused prefill against the mixer's own torch path in float64, and against itself in two pieces.

With TRITON_INTERPRET=1 the same tests run small on the CPU, without compiling (Triton 3.6 needs NumPy < 2.4 for
that, and its interpreter multiplies the bits of bf16 as if they were integers, so that fp16 stands for it).
"""

import os

import pytest
import torch
from torch import nn

from matvlm.models.mixer import Mamba2Mixer

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = (
    [] if INTERPRETED else [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
)

LENGTHS = [1, 17, 63, 150] if INTERPRETED else [1, 63, 500, 1428, 8192]
PADDED_LENGTH = 150 if INTERPRETED else 500
SHAPES = [(2, 1, 32), (2, 2, 64), (3, 1, 80)] if INTERPRETED else [(8, 2, 32), (8, 8, 64), (8, 8, 80), (8, 2, 80)]
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-3} | ({} if INTERPRETED else {torch.bfloat16: 1e-2})
BATCH = 3


class Memory:
    """As much of a cache as a mixer asks for."""

    def __init__(self, conv=None, state=None):
        self.layers = [self]
        self.conv_states, self.recurrent_states = [conv], [state]

    def has_previous_state(self, layer_idx):
        return self.conv_states[0] is not None

    def update_conv_state(self, conv, conv_kernel_size):
        self.conv_states[0] = conv

    def update_recurrent_state(self, state):
        self.recurrent_states[0] = state


def make_mixer(heads, kv_heads, head_dim, dtype, kernel=4):
    """A mixer that takes and gives what stands between its projections, weights random, of the values of dtype."""
    torch.manual_seed(0)
    mixer = Mamba2Mixer(8, heads, kv_heads, head_dim, layer_idx=0, conv_kernel=kernel)
    mixer.in_proj, mixer.out_proj = nn.Identity(), nn.Identity()
    with torch.no_grad():
        mixer.conv1d.weight.normal_()
        mixer.conv1d.bias.normal_()
        mixer.D.normal_()
        mixer.norm.weight.uniform_(0.5, 2)
    return mixer.to(DEVICE, dtype).requires_grad_(False)


def make_projected(mixer, length, dtype, batch=BATCH):
    torch.manual_seed(1)
    width = 2 * mixer.d_inner + 2 * mixer.d_xb + mixer.heads
    return torch.randn(batch, length, width, device=DEVICE).to(dtype)


def make_memory(mixer, dtype, batch=BATCH):
    torch.manual_seed(2)
    conv = torch.randn(batch, mixer.conv1d.weight.shape[0], mixer.conv_kernel, device=DEVICE).to(dtype)
    return conv, torch.randn(batch, mixer.heads, mixer.head_dim, mixer.head_dim, device=DEVICE)


def fused(mixer, projected, conv_before=None, state=None, mask=None):
    from matvlm.ops.prefill import fused_mix

    return fused_mix(
        projected,
        mixer.conv1d.weight,
        mixer.conv1d.bias,
        mixer.dt_bias,
        mixer.A_log,
        mixer.D,
        mixer.norm.weight,
        heads=mixer.heads,
        kv_heads=mixer.kv_heads,
        head_dim=mixer.head_dim,
        eps=mixer.norm.eps,
        conv_before=conv_before,
        state=state,
        mask=mask,
    )


def reference(mixer, projected, conv_before=None, state=None, mask=None):
    dtype = projected.dtype
    mixer.double()  # exact, and so is the way back
    memory = Memory(
        None if conv_before is None else conv_before.double(), None if state is None else state.double()
    )
    y = mixer(projected.double(), mask, memory)
    mixer.to(dtype)
    return y, memory.conv_states[0], memory.recurrent_states[0]


def relative_error(found, expected):
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_close(found, expected, dtype):
    """Outputs and state within the type's tolerance, the convolution's inputs exactly."""
    (y, conv, state), (y_expected, conv_expected, state_expected) = found, expected
    assert y.dtype == conv.dtype == dtype
    assert state.dtype == torch.float32
    assert torch.equal(conv.double(), conv_expected.double())
    errors = {"y": relative_error(y, y_expected), "state": relative_error(state, state_expected)}
    print(dtype, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) < TOLERANCES[dtype], errors


def padding(length, side):
    """Samples of full length, of two thirds of it and of one position."""
    mask = torch.zeros(BATCH, length, dtype=torch.long, device=DEVICE)
    for row, count in enumerate((length, 2 * length // 3, 1)):
        mask[row, :count] = 1
    return mask if side == "right" else mask.flip(1)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_fresh(length, shape, dtype):
    mixer = make_mixer(*shape, dtype)
    projected = make_projected(mixer, length, dtype)
    assert_close(fused(mixer, projected), reference(mixer, projected), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 2, PADDED_LENGTH])
def test_continued(length, shape, dtype):
    mixer = make_mixer(*shape, dtype)
    projected, (conv, state) = make_projected(mixer, length, dtype), make_memory(mixer, dtype)
    assert_close(fused(mixer, projected, conv, state), reference(mixer, projected, conv, state), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("kind", [torch.long, torch.bool])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side, kind, continued, dtype):
    mixer = make_mixer(*SHAPES[0], dtype)
    projected, mask = make_projected(mixer, PADDED_LENGTH, dtype), padding(PADDED_LENGTH, side).to(kind)
    before = make_memory(mixer, dtype) if continued else ()
    found = fused(mixer, projected, *before, mask=mask)
    assert_close(found, reference(mixer, projected, *before, mask=mask), dtype)
    assert (found[0][mask == 0] == 0).all()


def test_sample_without_a_real_position():
    mixer = make_mixer(*SHAPES[0], torch.float32)
    projected, before = make_projected(mixer, 20, torch.float32), make_memory(mixer, torch.float32)
    mask = torch.zeros(BATCH, 20, dtype=torch.long, device=DEVICE)
    y, conv, state = fused(mixer, projected, *before, mask=mask)
    assert not y.any()
    assert torch.equal(conv, before[0])
    assert torch.equal(state, before[1])


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_two_pieces_are_one(cut):
    mixer = make_mixer(*SHAPES[-1], torch.float32)
    projected = make_projected(mixer, PADDED_LENGTH, torch.float32)
    y1, *before = fused(mixer, projected[:, :cut])
    y2, *after = fused(mixer, projected[:, cut:], *before)
    whole, *expected = fused(mixer, projected)
    assert relative_error(torch.cat([y1, y2], 1), whole) < 1e-5
    assert torch.equal(after[0], expected[0])
    assert relative_error(after[1], expected[1]) < 1e-5


def test_rows_with_a_stride():
    mixer = make_mixer(*SHAPES[0], torch.float32)
    projected = make_projected(mixer, 40, torch.float32)
    wide = torch.cat([projected, torch.full_like(projected[..., :5], torch.nan)], -1)
    for same, other in zip(fused(mixer, wide[..., :-5]), fused(mixer, projected), strict=True):
        assert relative_error(same, other) < 1e-6


@pytest.mark.parametrize("kernel", [2, 3])
def test_other_convolutions(kernel):
    mixer = make_mixer(*SHAPES[0], torch.float32, kernel=kernel)
    projected, before = make_projected(mixer, 40, torch.float32), make_memory(mixer, torch.float32)
    assert_close(fused(mixer, projected, *before), reference(mixer, projected, *before), torch.float32)


def test_strong_decay_is_finite():
    mixer = make_mixer(*SHAPES[0], torch.float32)
    mixer.A_log.fill_(6.0)
    mixer.dt_bias.fill_(30.0)
    projected = make_projected(mixer, PADDED_LENGTH, torch.float32)
    (y, _, state), (y_expected, _, _) = fused(mixer, projected), reference(mixer, projected)
    # exp(-12000) and the like: what is left in the state is as far off as float32's exponents are.
    assert torch.isfinite(state).all()
    assert relative_error(y, y_expected) < TOLERANCES[torch.float32]


def test_gradients_are_refused():
    mixer = make_mixer(*SHAPES[0], torch.float32)
    with pytest.raises(RuntimeError, match="no backward"):
        fused(mixer, make_projected(mixer, 4, torch.float32).requires_grad_())
