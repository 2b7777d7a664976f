"""Conversations about one image as prompts, in the template that the teacher was trained with."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import LlavaProcessor

from matvlm.data.conversations import IMAGE
from matvlm.data.processor import count_image_tokens
from matvlm.data.render import Piece, answer_piece, encode, opening, question_piece, split_image
from matvlm.errors import UserError

Turn = tuple[str, str]
"""A question and its answer."""


def clean_question(question: str) -> str:
    """A question without the marker `<image>`, which the template puts where it belongs.

    Raises:
        UserError: nothing is left, or it is not text.
    """
    text = split_image(question)[1].strip()
    if not text:
        raise UserError("question: is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"question {text!r}: is not UTF-8 text") from None
    return text


def prompt_pieces(question: str, earlier: Sequence[Turn] = ()) -> list[Piece]:
    """The template's pieces up to `ASSISTANT:`; the image stands before the first question."""
    texts = [clean_question(text) for text in (*(asked for asked, _ in earlier), question)]
    texts[0] = f"{IMAGE}\n{texts[0]}"
    result = opening(image=True)
    for i, text in enumerate(texts):
        result += question_piece(text, first=i == 0)
        if i < len(earlier):
            result.append(answer_piece(earlier[i][1]))
    return result


def encode_prompt(question: str, earlier: Sequence[Turn], processor: LlavaProcessor, positions: int) -> list[int]:
    """Token ids of a prompt that leaves room for an answer.

    Args:
        earlier: questions and answers before this question, about the same image.
        positions: that the model has (`max_position_embeddings`).

    Raises:
        UserError: the question is empty, or the prompt is longer than the model allows.
    """
    parts = encode(prompt_pieces(question, earlier), processor.tokenizer, count_image_tokens(processor))
    ids = [token for part in parts for token in part]
    if len(ids) >= positions:
        before = " with all that was said before it" if earlier else ""
        raise UserError(
            f"question {_shorten(question)!r}: its prompt{before} has {len(ids)} tokens, the image's "
            f"{count_image_tokens(processor)} among them; this model allows {positions - 1}"
        )
    return ids


def _shorten(text: str, width: int = 40) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
