"""Losses in chunks, fused with the head, against the same losses of logits that are all there at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from matvlm.distill.gradients import settle, with_gradients
from matvlm.distill.head import head_sums
from matvlm.distill.losses import (
    DIVERGENCES,
    TopK,
    prob_divergence,
    release_prob,
    release_total,
)

N, D, V, ANSWERS = 23, 9, 37, 6
SIZES = (1, 5, 23, 64)
"""Chunks that do and do not divide the positions, and that hold all of them."""
TOLERANCES = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-10}}


def setting(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    head = nn.Linear(D, V, bias=bias).to(dtype).requires_grad_(False)
    hidden = (3 * torch.randn(N, D, dtype=dtype)).requires_grad_()
    teacher = 3 * torch.randn(N, V, dtype=dtype)
    return hidden, head, teacher, torch.randint(0, V, (ANSWERS,))


def gradient(value, hidden):
    (found,) = torch.autograd.grad(value, hidden, retain_graph=True)
    return found


def agree(ours, theirs, hidden, dtype):
    torch.testing.assert_close(ours, theirs, **TOLERANCES[dtype])
    torch.testing.assert_close(gradient(ours, hidden), gradient(theirs, hidden), **TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_chunks_give_the_divergence_and_its_gradient(divergence, size, bias, dtype):
    hidden, head, teacher, _ = setting(dtype, bias)

    def chunk(logits, part):
        assert len(logits) <= size
        return prob_divergence(logits, teacher[part], divergence, 1.7)

    ours, nothing = head_sums(hidden, head, size, chunk)
    agree(ours, prob_divergence(head(hidden), teacher, divergence, 1.7).sum(), hidden, dtype)
    assert nothing == 0


@pytest.mark.parametrize("divergence", ["kl", "reverse", "jsd", "ce"])
def test_chunks_of_a_top_k_teacher(divergence):
    hidden, head, teacher, _ = setting(torch.float32)
    top = TopK.of(teacher, 4, draws=3)

    def chunk(logits, part):
        return prob_divergence(logits, top[part], divergence)

    ours, _ = head_sums(hidden, head, 5, chunk)
    agree(ours, prob_divergence(head(hidden), top, divergence).sum(), hidden, torch.float32)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_chunks_in_the_releases_arithmetic(divergence):
    """The gradient of one norm over all chunks among them."""
    hidden, head, teacher, _ = setting()
    ours, _ = head_sums(hidden, head, 5, lambda logits, part: release_prob(logits, teacher[part], divergence, 1.0))
    theirs = release_prob(head(hidden), teacher, divergence, 1.0).sum()
    agree(release_total(ours, divergence, 2, N), release_total(theirs, divergence, 2, N), hidden, torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_both_losses_at_once_and_each_ones_own_gradient(size):
    hidden, head, teacher, labels = setting()
    prob, ce = head_sums(hidden, head, size, lambda s, part: prob_divergence(s, teacher[part], "kl"), labels)
    dense = F.cross_entropy(head(hidden)[:ANSWERS], labels, reduction="sum")
    agree(ce, dense, hidden, torch.float64)
    both = 0.3 * prob_divergence(head(hidden), teacher, "kl").sum() - 2 * dense
    agree(0.3 * prob - 2 * ce, both, hidden, torch.float64)


def test_without_gradients_and_without_positions():
    hidden, head, teacher, labels = setting()
    with torch.no_grad():
        prob, ce = head_sums(hidden, head, 5, lambda s, part: prob_divergence(s, teacher[part], "kl"), labels)
    assert not prob.requires_grad
    assert not ce.requires_grad
    nobody = hidden[:0]
    prob, ce = head_sums(nobody, head, 5, lambda s, part: prob_divergence(s, teacher[part], "kl"))
    (prob + ce).backward()
    assert prob == ce == 0


def test_the_logits_of_all_positions_are_never_there():
    """Neither in float32 nor in the weights' type, forwards or backwards."""
    hidden, head, teacher, labels = setting()

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.numbers = max(self.numbers, tensor.numel())
            return result

    with Largest() as largest:
        chunk = lambda s, part: prob_divergence(s, teacher[part], "kl")  # noqa: E731
        prob, ce = head_sums(hidden, head, 3, chunk, labels)
        (prob + ce).backward()
    assert largest.numbers == max(N * D, V * D)  # hidden states and the head's own (transposed) weight
    assert largest.numbers < N * V


def test_a_settled_value_is_a_function_of_its_inputs_alone():
    a, b, unused = (torch.randn(3, requires_grad=True) for _ in range(3))
    value = settle((a * b).sum().sin(), [a, b, unused])
    (2 * value).backward()
    expected = 2 * (a * b).sum().cos().detach()
    torch.testing.assert_close(a.grad, expected * b.detach())
    torch.testing.assert_close(b.grad, expected * a.detach())
    assert unused.grad is None
    assert settle(torch.tensor(1.0), [a]) == 1
    given = with_gradients(torch.tensor(1.0), [torch.ones(3)], [a])
    assert torch.equal(torch.autograd.grad(given, a)[0], torch.ones(3))
