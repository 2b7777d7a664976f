"""The mixer: its identity with linear attention after initialisation, and padding."""

import pytest
import torch
from torch import nn

from matvlm.models.initialise import copy_attention
from matvlm.models.mixer import GatedRMSNorm, Mamba2Mixer

HIDDEN, HEAD_DIM = 24, 6


class Identity(nn.Module):
    """Stands where the gated norm stands."""

    def forward(self, x, z):
        return x


def attention_weights(heads, kv_heads, output="dense"):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "q_proj.weight": rand(heads * HEAD_DIM, HIDDEN),
        "k_proj.weight": rand(kv_heads * HEAD_DIM, HIDDEN),
        "v_proj.weight": rand(kv_heads * HEAD_DIM, HIDDEN),
        f"{output}.weight": rand(HIDDEN, heads * HEAD_DIM),
    }


def make_mixer(heads, kv_heads, **kwargs):
    torch.manual_seed(1)
    return Mamba2Mixer(HIDDEN, heads, kv_heads, HEAD_DIM, layer_idx=0, chunk_size=8, **kwargs).double()


def simplify(mixer):
    """Decay 1, dt 1, identity convolution and no gate, norm or skip."""
    with torch.no_grad():
        mixer.in_proj.weight[-mixer.heads :] = 0
        mixer.dt_bias.fill_(torch.tensor(1.0, dtype=torch.float64).expm1().log())  # softplus gives 1
        mixer.A_log.fill_(-float("inf"))  # A = 0: decay exp(0) = 1
        mixer.D.zero_()
        mixer.conv1d.weight.zero_()
        mixer.conv1d.weight[:, 0, -1] = 1
        mixer.conv1d.bias.zero_()
    mixer.norm = Identity()


@pytest.mark.parametrize("output", ["dense", "o_proj"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_initialised_mixer_is_linear_attention(heads, kv_heads, output, monkeypatch):
    """Without SiLU the initialised mixer is sum_{s <= t} (q_t . k_s) v_s, head by head."""
    weights = attention_weights(heads, kv_heads, output)
    mixer = make_mixer(heads, kv_heads)
    copy_attention(weights, mixer)
    simplify(mixer)
    monkeypatch.setattr("matvlm.models.mixer.F.silu", lambda t: t)

    hidden = torch.randn(2, 21, HIDDEN, dtype=torch.float64)

    def project(name, count):
        return (hidden @ weights[f"{name}.weight"].T).view(2, 21, count, HEAD_DIM).transpose(1, 2)

    q = project("q_proj", heads)
    k, v = (project(n, kv_heads).repeat_interleave(heads // kv_heads, 1) for n in ("k_proj", "v_proj"))
    per_head = (q @ k.transpose(-1, -2)).tril() @ v  # (b, heads, l, head_dim)

    seen = {}
    mixer.out_proj.register_forward_pre_hook(lambda _m, args: seen.update(y=args[0]))
    output_states = mixer(hidden)
    found = seen["y"].view(2, 21, heads, HEAD_DIM).transpose(1, 2)
    for head in range(heads):
        torch.testing.assert_close(found[:, head], per_head[:, head], rtol=1e-10, atol=1e-10)
    expected = per_head.transpose(1, 2).flatten(2) @ weights[f"{output}.weight"].T
    torch.testing.assert_close(output_states, expected, rtol=1e-10, atol=1e-10)


def test_biases_are_copied_only_where_there_are_any():
    weights = attention_weights(4, 4)
    weights |= {f"{n}_proj.bias": torch.full((24,), i + 1.0) for i, n in enumerate("qkv")}
    weights["dense.bias"] = torch.full((HIDDEN,), 9.0)
    mixer = make_mixer(4, 4, bias=True)
    copy_attention(weights, mixer)
    _, x, B, C, _ = mixer.in_proj.bias.split([24, 24, 24, 24, 4])
    assert (x == 3).all()
    assert (B == 2).all()
    assert (C == 1).all()
    assert (mixer.out_proj.bias == 9).all()
    plain = make_mixer(4, 4)
    copy_attention(weights, plain)
    assert plain.in_proj.bias is None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bias", [False, True])
def test_padding_changes_nothing(side, bias):
    mixer = make_mixer(4, 2, bias=bias)
    samples = [torch.randn(1, n, HIDDEN, dtype=torch.float64) for n in (13, 5, 1)]
    batch = torch.randn(3, 13, HIDDEN, dtype=torch.float64)  # padding is noise, not zeros
    mask = torch.zeros(3, 13, dtype=torch.long)
    for row, sample in enumerate(samples):
        n = sample.shape[1]
        where = slice(0, n) if side == "right" else slice(13 - n, 13)
        batch[row, where], mask[row, where] = sample[0], 1
    out = mixer(batch, mask)
    for row, sample in enumerate(samples):
        torch.testing.assert_close(out[row, mask[row].bool()], mixer(sample)[0], rtol=1e-12, atol=1e-12)


def test_gated_norm_is_its_formula():
    norm = GatedRMSNorm(12, 4, 1e-5).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    x, z = torch.randn(2, 3, 12).double(), torch.randn(2, 3, 12).double()
    gated = x * z / (1 + torch.exp(-z))
    for group in range(3):
        part = gated[..., 4 * group : 4 * group + 4]
        expected = part / (part.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        expected = expected * norm.weight[4 * group : 4 * group + 4]
        torch.testing.assert_close(norm(x, z)[..., 4 * group : 4 * group + 4], expected)


def test_mamba_initialisation_is_in_range():
    mixer = make_mixer(4, 4)
    rates = mixer.A_log.exp()
    steps = nn.functional.softplus(mixer.dt_bias)
    assert ((rates >= 1) & (rates <= 16)).all()
    assert ((steps >= 1e-3 - 1e-9) & (steps <= 1e-1 + 1e-9)).all()
    assert (mixer.D == 1).all()
