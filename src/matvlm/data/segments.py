"""Conversations as indices into a table of token segments, and the assembly of batches from it.

The questions and answers of the embedded data are few, so each is tokenised once. A batch of 256
conversations of 21 turns is put together without a Python loop over rows or turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from matvlm.data.conversations import IMAGE, Row, turns_of
from matvlm.data.errors import DataError
from matvlm.data.render import IGNORE, Piece, answer_piece, encode, opening, question_piece, split_image
from matvlm.data.sort_of_clevr import CAPTION_QUESTION

_EMPTY, _OPENING = 0, 1


@dataclass(frozen=True)
class Assembled:
    """Token ids and labels (B, T), and the length of each row (B,)."""

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray


class SegmentTable:
    """Tokenised conversations about one image each, which the first question of each shows.

    Raises:
        DataError: a row without an image, or whose image is not with its first question.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, n_image_tokens: int) -> None:
        pieces: dict[Piece, int] = {}
        questions: dict[str, tuple[int, int, bool]] = {}
        turns: list[tuple[int, int, bool, int]] = []  # question if first, if later, is caption, answer
        counts = []

        def index(piece: Piece) -> int:
            return pieces.setdefault(piece, len(pieces) + 2)

        for row in rows:
            pairs = turns_of(row)
            if "image" not in row or not split_image(pairs[0][0])[0]:
                raise DataError(f"row {row['id']}: image: must be there and shown with the first question")
            for turn, (question, answer) in enumerate(pairs):
                text = split_image(question)[1] if turn == 0 else question
                if text not in questions:
                    first, later = question_piece(IMAGE + text, True), question_piece(text, False)
                    questions[text] = (index(first[-1]), index(later[-1]), text == CAPTION_QUESTION)
                turns.append((*questions[text], index(answer_piece(answer))))
            counts.append(len(pairs))

        start = [token for ids in encode(opening(True), tokenizer, n_image_tokens) for token in ids]
        ids = [[], start, *encode(list(pieces), tokenizer, n_image_tokens)]
        self._lengths = np.array([len(segment) for segment in ids])
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._tokens = np.concatenate([np.asarray(segment, dtype=np.int64) for segment in ids])
        columns = np.array(turns, dtype=np.int64)  # (turns, 4)
        self._first, self._later, caption, self._answer = np.ascontiguousarray(columns.T)
        self._caption = caption.astype(bool)
        self.turns = np.array(counts)
        """(N,) number of turns of each row."""
        self._row_start = np.cumsum(self.turns) - self.turns

    def assemble(
        self,
        rows: np.ndarray,
        max_length: int,
        pad_token_id: int,
        *,
        rng: np.random.Generator | None = None,
        shuffle_turns: bool = False,
        drop_caption: float = 0.0,
    ) -> Assembled:
        """Rows (B,) padded on the right to the longest; for the options see `InMemoryDataset.batch`."""
        turn, row = self._pick_turns(rows, rng, shuffle_turns, drop_caption)
        first = np.diff(row, prepend=-1) > 0
        segments = np.stack(
            [
                np.where(first, _OPENING, _EMPTY),
                np.where(first, self._first[turn], self._later[turn]),
                self._answer[turn],
            ],
            axis=1,
        )  # (turns of the batch, 3)
        sizes = self._lengths[segments]
        flat_sizes, total = sizes.ravel(), int(sizes.sum())
        ends = np.cumsum(flat_sizes)
        offsets = self._starts[segments].ravel() - (ends - flat_sizes)
        tokens = self._tokens[np.arange(total) + np.repeat(offsets, flat_sizes)]
        is_answer = np.repeat(np.tile([False, False, True], len(turn)), flat_sizes)
        labels = np.where(is_answer, tokens, IGNORE)

        lengths = np.bincount(row, weights=sizes.sum(1), minlength=len(rows)).astype(np.int64)
        if lengths.max(initial=0) > max_length:
            begins = np.cumsum(lengths) - lengths
            keep = np.arange(total) - np.repeat(begins, lengths) < max_length
            tokens, labels, lengths = tokens[keep], labels[keep], np.minimum(lengths, max_length)
        inside = np.arange(lengths.max(initial=0)) < lengths[:, None]  # (B, T)
        input_ids = np.full(inside.shape, pad_token_id, dtype=np.int64)
        padded = np.full(inside.shape, IGNORE, dtype=np.int64)
        input_ids[inside], padded[inside] = tokens, labels
        return Assembled(input_ids, padded, lengths)

    def vary(self, rng: np.random.Generator, drop_caption: float) -> None:
        """Put the turns of every row into a random order, a caption first, for good; in a share
        ``drop_caption`` of the rows leave the caption out."""
        turn, row = self._pick_turns(np.arange(len(self.turns)), rng, True, drop_caption)
        self._first, self._later, self._answer = self._first[turn], self._later[turn], self._answer[turn]
        self._caption = self._caption[turn]
        self.turns = np.bincount(row, minlength=len(self.turns))
        self._row_start = np.cumsum(self.turns) - self.turns

    def _pick_turns(
        self, rows: np.ndarray, rng: np.random.Generator | None, shuffle: bool, drop_caption: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The turns of a batch in their order, and the place in the batch that each belongs to."""
        counts = self.turns[rows]
        row = np.repeat(np.arange(len(rows)), counts)
        turn = np.arange(len(row)) + np.repeat(self._row_start[rows] - (np.cumsum(counts) - counts), counts)
        if (shuffle or drop_caption) and rng is None:
            raise ValueError("shuffle_turns and drop_caption need rng")
        if drop_caption:
            dropped = (rng.random(len(rows)) < drop_caption) & (counts > 1)
            keep = ~(self._caption[turn] & dropped[row])
            row, turn = row[keep], turn[keep]
        if shuffle:
            key = rng.random(len(turn))
            key[self._caption[turn]] = -1  # a caption stays first
            turn = turn[np.lexsort((key, row))]  # rows stay where they are
        return turn, row
