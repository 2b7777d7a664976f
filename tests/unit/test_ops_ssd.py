"""The three forms of the scan against each other, in float64, forward and backward."""

import pytest
import torch

from matvlm.ops.ssd import ssd_chunked, ssd_sequential, ssd_step

TOLERANCE = 1e-10


def inputs(length, groups, seed=0, heads=4, head_dim=5, d_state=7, batch=2):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {
        "x": rand(batch, length, heads, head_dim),
        "dt": rand(batch, length, heads).exp() * 0.3,
        "A": -rand(heads).exp(),
        "B": rand(batch, length, groups, d_state),
        "C": rand(batch, length, groups, d_state),
        "D": rand(heads),
        "initial_state": rand(batch, heads, head_dim, d_state),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


def outputs_and_gradients(function, values):
    y, state = function(**values)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y * weights).sum() + (state * 0.3).sum()
    return (y, state, *torch.autograd.grad(loss, list(values.values())))


def stepwise(x, dt, A, B, C, D, initial_state):
    state, outputs = initial_state, []
    for t in range(x.shape[1]):
        y, state = ssd_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def closed_form(x, dt, A, B, C, D, initial_state):
    """Written from the definition, without a recurrence: y_t = sum_s C_t.B_s exp(A sum_{s<r<=t} dt_r) dt_s x_s."""
    heads = x.shape[2]
    B = B.repeat_interleave(heads // B.shape[2], 2)
    C = C.repeat_interleave(heads // C.shape[2], 2)
    total = (dt * A).cumsum(1)
    outputs = []
    for t in range(x.shape[1]):
        y = torch.einsum("bhn,bhpn,bh->bhp", C[:, t], initial_state, total[:, t].exp()) + D[:, None] * x[:, t]
        for s in range(t + 1):
            weight = (C[:, t] * B[:, s]).sum(-1) * (total[:, t] - total[:, s]).exp() * dt[:, s]
            y = y + weight[..., None] * x[:, s]
        outputs.append(y)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 2, 63, 500])
def test_forms_agree(length, groups):
    values = inputs(length, groups)
    reference = outputs_and_gradients(ssd_sequential, values)
    for chunk_size in (16, 64):
        chunked = outputs_and_gradients(lambda c=chunk_size, **v: ssd_chunked(**v, chunk_size=c), values)
        for expected, found in zip(reference, chunked, strict=True):
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    for expected, found in zip(reference, outputs_and_gradients(stepwise, values), strict=True):
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("groups", [4, 2])
def test_recurrence_is_its_closed_form(groups):
    values = inputs(9, groups)
    y, _ = ssd_sequential(**values)
    torch.testing.assert_close(y, closed_form(**values), rtol=TOLERANCE, atol=TOLERANCE)


def test_state_is_handed_over():
    values = inputs(50, 2)
    whole, last = ssd_chunked(**values, chunk_size=16)
    first = {k: v[:, :23] if v.ndim > 1 and v.shape[1] == 50 else v for k, v in values.items()}
    second = {k: v[:, 23:] if v.ndim > 1 and v.shape[1] == 50 else v for k, v in values.items()}
    y1, state = ssd_chunked(**first, chunk_size=16)
    y2, state = ssd_chunked(**{**second, "initial_state": state}, chunk_size=16)
    torch.testing.assert_close(torch.cat([y1, y2], 1), whole, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(state, last, rtol=TOLERANCE, atol=TOLERANCE)


def test_strong_decay_gives_finite_gradients():
    values = inputs(100, 4)
    strong = {**values, "A": (values["A"].detach() * 400).requires_grad_()}
    for tensor in outputs_and_gradients(lambda **v: ssd_chunked(**v, chunk_size=32), strong):
        assert torch.isfinite(tensor).all()
