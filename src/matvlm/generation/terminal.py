"""A conversation on the terminal: questions from the command line or stdin, answers to stdout as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from matvlm.data.images import open_own_image
from matvlm.errors import UserError
from matvlm.generation.decoding import Decoding

if TYPE_CHECKING:
    from PIL.Image import Image

    from matvlm.generation.chat import Chat

PROMPT = "> "


def converse(
    model: Path, image: Path, questions: Sequence[str], decoding: Decoding, device: str, dtype: str
) -> None:
    """Answer ``questions``, or those that stdin has, each knowing the answers before it.

    All that can be wrong without the weights is found before they are loaded.

    Raises:
        UserError: as `Chat.open` and `Chat.ask`; or stdin has no question.
    """
    picture = open_own_image(image)
    interactive = not questions and sys.stdin is not None and sys.stdin.isatty()
    if not questions and not interactive:
        lines = _piped()
        first = next(lines, None)
        if first is None:
            raise UserError("question: none given, on the command line or on stdin")
        questions, lines = [first], chain([first], lines)
    else:
        lines = iter(questions)

    from matvlm.generation.chat import Chat  # takes seconds

    chat = Chat.open(model, device, dtype)
    chat.check(questions)
    if interactive:
        _interact(chat.load(), picture, decoding)
        return
    earlier: list[tuple[str, str]] = []
    for question in lines:
        _exchange(chat, picture, question, decoding, earlier)


def _interact(chat: Chat, picture: Image, decoding: Decoding) -> None:
    """Questions as they are typed. Ctrl-D ends the chat; Ctrl-C ends an answer, and between answers the chat."""
    import readline  # noqa: F401  line editing and history for `input`

    print("One question a line; Ctrl-D ends.", file=sys.stderr)
    earlier: list[tuple[str, str]] = []
    while True:
        try:
            question = _read()
        except EOFError:
            print(file=sys.stderr)
            return
        if not question.strip():
            continue
        try:
            _exchange(chat, picture, question, decoding, earlier)
        except UserError as error:  # another question may do
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()


def _exchange(chat: Chat, picture: Image, question: str, decoding: Decoding, earlier: list) -> None:
    """Print one answer and add the turn to ``earlier``, however much of the answer there is."""
    answer = chat.ask(picture, question, decoding, earlier)
    try:
        for piece in answer:
            print(piece, end="", flush=True)
        print(flush=True)
    finally:
        if answer.ids:  # not where memory ran out
            earlier.append((question, answer.text))
    if answer.stopped:
        asked, made = decoding.max_new_tokens, len(answer.ids)
        limit = f"--max-new-tokens {asked}" if made >= asked else f"the model's {chat.positions} positions"
        print(f"note: the answer was cut short by {limit}", file=sys.stderr)


def _read() -> str:
    """A line from the terminal; the prompt stays out of what stdout is redirected to."""
    if sys.stdout.isatty():
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return input()


def _piped() -> Iterator[str]:
    """Lines of stdin.

    Raises:
        UserError: a line is empty.
    """
    if sys.stdin is None:  # closed by whoever started this
        return
    # What is no UTF-8 is judged with the question that it stands in.
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            raise UserError(f"stdin: line {number}: is empty; one question a line")
        yield line.rstrip("\r\n")
