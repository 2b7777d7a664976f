"""The losses against their formulas in NumPy, float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from matvlm.distill.losses import (
    TopK,
    layer_divergence,
    prob_divergence,
    release_prob,
    release_total,
)

B, L, V = 3, 7, 11


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(B, L, V) * 2, torch.randn(B, L, V) * 2


def softmax(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    scaled = np.exp(logits.double().numpy() / temperature)
    return scaled / scaled.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def expected(student, teacher, divergence, temperature=1.0):
    s, t = softmax(student, temperature), softmax(teacher, temperature)
    if divergence == "kl":
        return temperature**2 * kl(t, s)
    if divergence == "reverse":
        return temperature**2 * kl(s, t)
    if divergence == "jsd":
        return temperature**2 * (kl(t, (s + t) / 2) + kl(s, (s + t) / 2)) / 2
    if divergence == "ce":
        best = teacher.argmax(-1).numpy()
        return -np.log(np.take_along_axis(softmax(student), best[..., None], -1)[..., 0])
    return np.sqrt(((student - teacher).double().numpy() ** 2).mean(-1))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divergence", ["kl", "reverse", "jsd", "ce", "l2"])
def test_divergences_are_their_formulas(pair, divergence, temperature):
    got = prob_divergence(*pair, divergence, temperature)
    np.testing.assert_allclose(got.numpy(), expected(*pair, divergence, temperature), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", ["kl", "reverse", "jsd", "l2"])
def test_a_student_like_its_teacher_has_no_divergence_and_no_gradient(pair, divergence):
    student = pair[1].clone().requires_grad_()
    value = prob_divergence(student, pair[1], divergence).sum()
    value.backward()
    assert value.detach().abs() < 1e-4
    assert student.grad.abs().max() < 1e-4


def test_jensen_shannon_is_symmetric_and_bounded(pair):
    one, other = prob_divergence(*pair, "jsd"), prob_divergence(*reversed(pair), "jsd")
    torch.testing.assert_close(one, other)
    assert (one <= np.log(2)).all()


@pytest.mark.parametrize("divergence", ["kl", "reverse", "jsd"])
def test_top_k_is_the_divergence_of_the_coarser_distribution(pair, divergence):
    """Tokens outside the top k count as one, on both sides."""
    student, teacher = pair
    k = 4
    got = prob_divergence(student, TopK.of(teacher, k), divergence)
    order = np.argsort(-teacher.numpy(), -1)
    merged = []
    for p in (softmax(student), softmax(teacher)):
        sorted_p = np.take_along_axis(p, order, -1)
        merged.append(np.concatenate([sorted_p[..., :k], sorted_p[..., k:].sum(-1, keepdims=True)], -1))
    s, t = merged
    m = (s + t) / 2
    formula = {"kl": kl(t, s), "reverse": kl(s, t), "jsd": (kl(t, m) + kl(s, m)) / 2}[divergence]
    np.testing.assert_allclose(got.numpy(), formula, rtol=1e-4, atol=1e-6)


def test_top_k_with_nearly_all_mass_loses_little(pair):
    student, teacher = pair[0], pair[1] * 5
    full = prob_divergence(student, teacher, "kl")
    torch.testing.assert_close(prob_divergence(student, TopK.of(teacher, V - 1), "kl"), full, rtol=1e-4, atol=1e-4)


def test_the_mass_of_the_tail_is_there_where_a_teacher_is_sure():
    """One token at 40 nats above 99 others: what they have together is far below a step of float32 at 1."""
    logits = torch.zeros(100, dtype=torch.float64)
    logits[7] = 40
    top = TopK.of(logits.float(), 1)
    assert top.indices.tolist() == [7]
    assert float(top.tail) == pytest.approx(np.log(99) - 40, rel=1e-6)
    everything = TopK.of(logits.float(), 100)
    assert everything.tail.exp() < 1e-30
    assert prob_divergence(logits.float(), everything, "kl") == pytest.approx(0, abs=1e-6)


def test_draws_from_the_tail_leave_no_bias_in_value_or_gradient(pair):
    """Over all that one draw can be, each weighed by how likely it is, the estimate is the KL of all logits."""
    student, teacher = (logits.double().requires_grad_() for logits in pair)
    exact = prob_divergence(student, teacher, "kl")
    (expected_gradient,) = torch.autograd.grad(exact.sum(), student)
    top = TopK.of(teacher.detach(), 4)
    log_p = teacher.detach().log_softmax(-1)
    mean = torch.zeros_like(exact)
    for token in range(V):
        drawn = torch.full_like(top.indices[..., :1], token)
        value = log_p.gather(-1, drawn)
        outside = ~(top.indices == token).any(-1)
        chance = torch.where(outside, (value.squeeze(-1) - top.tail).exp(), 0)
        one = replace(top, drawn_values=value, drawn_indices=drawn)
        mean = mean + chance * prob_divergence(student, one, "kl")
    torch.testing.assert_close(mean, exact)
    (gradient,) = torch.autograd.grad(mean.sum(), student)
    torch.testing.assert_close(gradient, expected_gradient)


def test_tokens_are_drawn_from_the_tail_as_often_as_they_are_likely(pair):
    teacher, draws = pair[1][0, 0], 20_000
    top = TopK.of(teacher, 3, draws, torch.Generator().manual_seed(0))
    assert not set(top.drawn_indices.tolist()) & set(top.indices.tolist())
    torch.testing.assert_close(top.drawn_values, teacher.log_softmax(-1)[top.drawn_indices])
    p = softmax(teacher)
    p[top.indices.numpy()] = 0
    found = np.bincount(top.drawn_indices.numpy(), minlength=V) / draws
    np.testing.assert_allclose(found, p / p.sum(), atol=4 * np.sqrt(0.25 / draws))
    assert TopK.of(teacher, V, 5).drawn_indices.shape == (0,)  # there is no tail


@pytest.mark.parametrize(("divergence", "temperature"), [("l2", 1.0), ("kl", 2.0)])
def test_what_a_top_k_cache_cannot_give_is_an_error(pair, divergence, temperature):
    with pytest.raises(ValueError, match="top-k cache serves"):
        prob_divergence(pair[0], TopK.of(pair[1], 3), divergence, temperature)


def test_unknown_divergence_names_the_allowed_ones(pair):
    with pytest.raises(ValueError, match=r"'hellinger'; allowed: kl, reverse, jsd, ce, l2"):
        prob_divergence(*pair, "hellinger")


def test_release_arithmetic(pair):
    """Sums over the batch divided by its size, the halved sum of KL(M || student) and KL(M || teacher) for
    jsd, a mean for ce, one norm for l2: PAPER.md, `L_prob` and `Its jsd computes`."""
    s, t = softmax(pair[0]), softmax(pair[1])
    m = (s + t) / 2
    formulas = {
        "kl": kl(t, s).sum() / B,
        "reverse": kl(s, t).sum() / B,
        "jsd": (kl(m, s) + kl(m, t)).sum() / 2 / B,
        "ce": expected(*pair, "ce").mean(),
        "l2": np.sqrt(((pair[0] - pair[1]).double().numpy() ** 2).sum()),
    }
    for divergence, formula in formulas.items():
        total = release_total(release_prob(*pair, divergence, 1.0).sum(), divergence, B, B * L)
        assert float(total) == pytest.approx(formula, rel=1e-5), divergence


def test_layer_divergences(pair):
    difference = (pair[0] - pair[1]).double().numpy()
    np.testing.assert_allclose(
        layer_divergence(*pair, "l2").numpy(), np.linalg.norm(difference, axis=-1) / np.sqrt(V), rtol=1e-5
    )
    np.testing.assert_allclose(
        layer_divergence(*pair, "kl").numpy(), kl(softmax(pair[1]), softmax(pair[0])), rtol=1e-4, atol=1e-6
    )
