"""Conversations as token ids, in the prompt format of the teacher (the release's template `phi`).

    {system line} USER: <image>\\n{question} ASSISTANT: {answer}<|endoftext|>USER: {question} ASSISTANT: …

Text is tokenised piece by piece, so that labels end exactly where answers do. Pieces are cut before spaces
and at special tokens, where these tokenizers cut anyway: the ids are those of the whole text.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from matvlm.data.conversations import IMAGE
from matvlm.data.errors import DataError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
USER, ASSISTANT = "USER:", "ASSISTANT:"
IGNORE = -100
"""Label of a position that is not learnt from, as PyTorch's cross-entropy has it."""
CHAT_TEMPLATE = "".join(
    [
        "{% for message in messages %}",
        "{% set parts = [{'type': 'text', 'text': message.content}] if message.content is string ",
        "else message.content %}",
        "{% set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}",
        "{% if message.role == 'user' %}",
        f"{{% if loop.first %}}{SYSTEM} {{% endif %}}{USER} ",
        f"{{% if parts | selectattr('type', 'equalto', 'image') | list %}}{IMAGE}\n{{% endif %}}",
        f"{{{{ text }}}} {ASSISTANT}",
        "{% elif message.role == 'assistant' %} {{ text }}{{ eos_token }}",
        "{% else %}{{ raise_exception('roles are user and assistant') }}{% endif %}",
        "{% endfor %}",
    ]
)
"""The format as transformers' chat templates are written, for those who use a model without this package."""


@dataclass(frozen=True)
class Piece:
    """Text that is tokenised on its own. ``eos``: the end-of-text token follows. ``label``: it is learnt."""

    text: str
    label: bool = False
    eos: bool = False


def split_image(question: str) -> tuple[bool, str]:
    """Whether the question shows the image, and its text without the marker, as the release strips it."""
    if IMAGE not in question:
        return False, question
    return True, question.replace(IMAGE, "").strip()


def opening(image: bool) -> list[Piece]:
    """What comes before the first question; ``image``: that question shows the image."""
    return [Piece(f"{SYSTEM} {USER} "), Piece(IMAGE)] if image else []


def question_piece(question: str, first: bool) -> list[Piece]:
    """A question, after its `opening` if it is the first, up to `ASSISTANT:`."""
    image, text = split_image(question)
    if image:
        start = [] if first else [Piece(f"{USER} "), Piece(IMAGE)]
        return [*start, Piece(f"\n{text} {ASSISTANT}" if text else f" {ASSISTANT}")]
    return [Piece(f"{SYSTEM if first else ''}{' ' if first else ''}{USER} {text} {ASSISTANT}")]


def answer_piece(answer: str) -> Piece:
    """An answer and the end-of-text token, both learnt."""
    return Piece(f" {answer}", label=True, eos=True)


def pieces(turns: list[tuple[str, str]]) -> list[Piece]:
    """All pieces of a conversation of (question, answer) pairs."""
    result = opening(split_image(turns[0][0])[0])
    for i, (question, answer) in enumerate(turns):
        result += [*question_piece(question, first=i == 0), answer_piece(answer)]
    return result


def render_prompt(question: str, n_image_tokens: int = 1) -> str:
    """Text to evaluate one question with, ending in `ASSISTANT:`.

    Args:
        question: with or without the marker `<image>`.
        n_image_tokens: how often `<image>` stands in the prompt: 1 if a `LlavaProcessor` expands it, 0 for a
            question about no image.
    """
    text = split_image(question)[1]
    if not n_image_tokens:
        return f"{SYSTEM} {USER} {text} {ASSISTANT}"
    return f"{SYSTEM} {USER} {IMAGE * n_image_tokens}\n{text} {ASSISTANT}"


def encode(many: list[Piece], tokenizer: PreTrainedTokenizerBase, n_image_tokens: int) -> list[list[int]]:
    """Token ids of each piece, with the image's places filled and the end-of-text token where it belongs.

    Raises:
        DataError: the tokenizer has no token `<image>` or no end-of-text token.
    """
    image_id = image_token_id(tokenizer)
    if tokenizer.eos_token_id is None:
        raise DataError("tokenizer: has no end-of-text token (eos_token)")
    ids = tokenizer([piece.text for piece in many], add_special_tokens=False)["input_ids"]
    for i, piece in enumerate(many):
        if piece.text == IMAGE:
            ids[i] = [image_id] * n_image_tokens
        elif piece.eos:
            ids[i] = [*ids[i], tokenizer.eos_token_id]
    return ids


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of `<image>`. Raises DataError where the tokenizer has no such token."""
    found = tokenizer.convert_tokens_to_ids(IMAGE)
    if found is None or found == tokenizer.unk_token_id:
        raise DataError(f"tokenizer: has no token {IMAGE}")
    return found


def render_conversation(
    turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, n_image_tokens: int, max_length: int
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and their labels, both cut on the right to ``max_length``.

    Labels are the ids of the answers and of the end-of-text token that ends each, -100 elsewhere; as usual
    they are not shifted, the model does that.

    Raises:
        DataError: nothing to learn is left within ``max_length``.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    many = pieces(turns)
    for piece, ids in zip(many, encode(many, tokenizer, n_image_tokens), strict=True):
        input_ids += ids
        labels += ids if piece.label else [IGNORE] * len(ids)
    labels = labels[:max_length]
    if all(label == IGNORE for label in labels):
        raise DataError(f"conversations: no answer begins within {max_length} tokens")
    return input_ids[:max_length], labels
