"""A whole conversation as text, to compare token ids with those of the text."""

from __future__ import annotations

from matvlm.data.conversations import IMAGE
from matvlm.data.render import pieces


def render_text(turns: list[tuple[str, str]], eos: str, n_image_tokens: int = 1) -> str:
    """``eos`` is the tokenizer's end-of-text token."""
    return "".join(
        (IMAGE * n_image_tokens if piece.text == IMAGE else piece.text) + (eos if piece.eos else "")
        for piece in pieces(turns)
    )
