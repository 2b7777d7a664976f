"""Conversations read from disk as they are needed, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from matvlm.data.conversations import Rejected, Row, turns_of
from matvlm.data.errors import DataError
from matvlm.data.images import open_image
from matvlm.data.render import IGNORE, SYSTEM, render_conversation


class ConversationDataset(torch.utils.data.Dataset):
    """Map-style dataset of conversations, whose images are opened when an item is asked for.

    Rows of which no answer fits into ``max_length`` are left out and listed in `rejected`.

    Args:
        rows: sound rows, as `load_conversations` returns them. image_root: what their paths are relative to.
        n_image_tokens: tokens that an image takes. max_length: tokens kept of a conversation.

    Raises:
        DataError: no row is left.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        image_root: Path,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        n_image_tokens: int,
        max_length: int,
    ) -> None:
        self.image_root, self.tokenizer, self.image_processor = image_root, tokenizer, image_processor
        self.n_image_tokens, self.max_length = n_image_tokens, max_length
        self.rows: list[Row] = []
        self.rejected: list[Rejected] = []
        for index, row in enumerate(rows):
            if reason := self._too_long(row):
                self.rejected.append({"row": index, "id": row["id"], "field": "conversations", "reason": reason})
            else:
                self.rows.append(row)
        if not self.rows:
            raise DataError(f"conversations: of {len(rows)} none has an answer within {max_length} tokens")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`id`, `input_ids` and `labels` (lists of int), `pixel_values` (3, S, S) float32 or None.

        Raises:
            DataError: the image cannot be used; the message names it and the row.
        """
        row = self.rows[index]
        ids, labels = render_conversation(turns_of(row), self.tokenizer, self.n_image_tokens, self.max_length)
        pixels = None
        if "image" in row:
            try:
                image = open_image(row["image"], self.image_root)
            except DataError as error:
                raise DataError(f"row {row['id']}: {error}") from None
            pixels = self.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return {"id": row["id"], "input_ids": ids, "labels": labels, "pixel_values": pixels}

    def batch(self, indices: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Rows as one batch on ``device``; see `collate`."""
        with ThreadPoolExecutor(8) as pool:  # Pillow decodes without holding the interpreter lock
            items = list(pool.map(self.__getitem__, (int(i) for i in indices)))
        pad = self.tokenizer.pad_token_id
        batch = collate(items, self.tokenizer.eos_token_id if pad is None else pad)
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _too_long(self, row: Row) -> str | None:
        question, answer = turns_of(row)[0]
        # No tokenizer makes more tokens than bytes: nearly all rows need not be tokenised to know.
        bound = len((SYSTEM + question).encode()) + len(" USER:  ASSISTANT:") + self.n_image_tokens
        if bound < self.max_length:
            return None
        try:
            render_conversation([(question, answer)], self.tokenizer, self.n_image_tokens, self.max_length)
        except DataError as error:
            return str(error).removeprefix("conversations: ")
        return None


def collate(batch: Sequence[dict[str, Any]], pad_token_id: int, padding_side: str = "right") -> dict[str, Any]:
    """Pad items of `ConversationDataset` to the longest.

    Returns:
        `input_ids`, `attention_mask`, `labels` (B, T) int64, labels -100 on padding; `ids`, a list;
        `image_rows` (N,) int64, the rows that have an image; `pixel_values` (N, 3, S, S), their images in
        that order, absent if there are none.
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side {padding_side!r}; allowed: left, right")
    longest = max(len(item["input_ids"]) for item in batch)
    shape = (len(batch), longest)
    result: dict[str, Any] = {
        "input_ids": torch.full(shape, pad_token_id, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORE, dtype=torch.long),
        "ids": [item["id"] for item in batch],
    }
    for i, item in enumerate(batch):
        size = len(item["input_ids"])
        where = slice(0, size) if padding_side == "right" else slice(longest - size, longest)
        result["input_ids"][i, where] = torch.tensor(item["input_ids"], dtype=torch.long)
        result["labels"][i, where] = torch.tensor(item["labels"], dtype=torch.long)
        result["attention_mask"][i, where] = 1
    with_image = [i for i, item in enumerate(batch) if item["pixel_values"] is not None]
    result["image_rows"] = torch.tensor(with_image, dtype=torch.long)
    if with_image:
        result["pixel_values"] = torch.stack([batch[i]["pixel_values"] for i in with_image])
    return result
