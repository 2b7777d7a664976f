"""The convolution by single steps is that of the whole sequence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from matvlm.ops.torch_path import convolve, convolve_step

BATCH, LENGTH, CHANNELS = 2, 9, 5


@pytest.fixture(params=[1, 2, 4])
def case(request):
    """Inputs (b, l, c), the inputs before (b, c, k), weight and bias."""
    width, generator = request.param, torch.Generator().manual_seed(0)
    shapes = ((BATCH, LENGTH, CHANNELS), (BATCH, CHANNELS, width), (CHANNELS, width), (CHANNELS,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def by_steps(inputs, window, weight, bias):
    return torch.stack([convolve_step(one, window, weight, bias) for one in inputs.unbind(1)], 1)


@pytest.mark.parametrize("begun", [False, True])
def test_steps_are_the_sequence(case, begun):
    inputs, before, weight, bias = case
    window = before.clone() if begun else torch.zeros_like(before)
    found = by_steps(inputs, window, weight, bias)
    expected = convolve(inputs, before if begun else None, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_window_holds_the_last_inputs_in_place(case):
    inputs, window, weight, bias = case
    width, held, all_inputs = weight.shape[1], window.data_ptr(), torch.cat([window, inputs.mT], -1)
    for step in range(LENGTH):
        convolve_step(inputs[:, step], window, weight, bias)
        assert torch.equal(window, all_inputs[..., step + 1 : step + 1 + width])
    assert window.data_ptr() == held


def test_a_step_after_a_sequence_continues_it(case):
    inputs, before, weight, bias = case
    width = weight.shape[1]
    window = torch.cat([before, inputs[:, :6].mT], -1)[..., -width:].contiguous()
    first = convolve(inputs[:, :6], before, weight, bias)
    found = torch.cat([first, by_steps(inputs[:, 6:], window, weight, bias)], 1)
    torch.testing.assert_close(found, convolve(inputs, before, weight, bias), rtol=1e-12, atol=1e-12)


def test_it_is_the_causal_sum(case):
    inputs, before, weight, bias = case
    all_inputs = torch.cat([before[..., 1:], inputs.mT], -1)
    for step in range(LENGTH):
        taps = all_inputs[..., step : step + weight.shape[1]]
        expected = F.silu((taps * weight).sum(-1) + bias)
        torch.testing.assert_close(convolve(inputs, before, weight, bias)[:, step], expected)


def test_a_step_has_the_type_of_its_inputs(case):
    inputs, window, weight, bias = (tensor.bfloat16() for tensor in case)
    assert convolve_step(inputs[:, 0], window, weight, bias).dtype == torch.bfloat16
