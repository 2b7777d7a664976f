"""Tokens of a top-k cache that is made on a GPU."""

from __future__ import annotations

import torch

from matvlm.distill.losses import TopK, prob_divergence


def test_tokens_are_drawn_from_outside_the_top_k(device: torch.device) -> None:
    torch.manual_seed(0)
    teacher, student = (torch.randn(33, 49_216, device=device, dtype=torch.bfloat16) * 3 for _ in range(2))
    tops = [TopK.of(teacher, 64, 16, torch.Generator(device).manual_seed(7)) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*(vars(top).values() for top in tops), strict=True))
    top = tops[0]
    assert not (top.drawn_indices[..., None] == top.indices[..., None, :]).any()
    torch.testing.assert_close(top.drawn_values, teacher.float().log_softmax(-1).gather(-1, top.drawn_indices))
    estimate, exact = (prob_divergence(student, given, "kl") for given in (top, teacher))
    error = (estimate - exact).mean() / exact.mean()
    assert error.abs() < 0.1  # 528 draws
