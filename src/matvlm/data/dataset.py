"""A prepared split held in memory: tokenised once, images decoded and resized once, batches put together in
milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, LlavaProcessor, PreTrainedTokenizerBase

from matvlm.data.conversations import IMAGE, Rejected, Row, load_conversations, turns_of
from matvlm.data.easy_vqa import ID_PREFIX
from matvlm.data.errors import DataError
from matvlm.data.images import open_image, resolve_image
from matvlm.data.processor import count_image_tokens
from matvlm.data.render import IGNORE, SYSTEM, render_conversation
from matvlm.data.segments import SegmentTable
from matvlm.progress import progress

DROP_CAPTION = 0.5
"""Share of conversations that models in training see without their caption turn. The benchmarks' questions
come without one, and alone: where captions and the order of questions never change, models learn to read
answers off the conversation instead of the image."""
SMALL_FILE = 16384
"""Bytes of an image file below which one thread reads as many as several do."""
SAMPLE = 100
"""Files of a split by which its images are judged small or not."""


class InMemoryDataset:
    """Conversations about one image each. `images`: (N, 3, S, S) uint8, resized. `ids`: names of the rows.
    `flippable`: (N,) bool, rows whose answers stay true when the image is mirrored."""

    def __init__(
        self,
        table: SegmentTable,
        images: Tensor,
        ids: list[str],
        *,
        max_length: int,
        pad_token_id: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.table, self.images, self.ids = table, images, ids
        self.max_length, self.pad_token_id = max_length, pad_token_id
        self.flippable = np.array([name.startswith(ID_PREFIX) for name in ids])
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.ids)

    def vary(self) -> InMemoryDataset:
        """Give every row, for good, a random order of its questions, and half of the captioned ones no
        caption; the same whenever it is done, so that what is cached of a row stays true. Returns itself."""
        self.table.vary(np.random.default_rng(0), DROP_CAPTION)
        return self

    def to(self, device: torch.device | str) -> InMemoryDataset:
        """Move the images to ``device``, so that no batch has to; returns itself."""
        self.images = self.images.to(device)
        return self

    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        device: torch.device | str = "cpu",
        rng: np.random.Generator | None = None,
        shuffle_turns: bool = False,
        drop_caption: float = 0.0,
        flip: float = 0.0,
        shift: int = 0,
    ) -> dict[str, Any]:
        """Rows as one batch, padded on the right.

        Args:
            rng: needed for the options that follow, which vary the data for a teacher in training.
            shuffle_turns: put the questions of each row in a random order; a caption stays first.
            drop_caption: share of rows whose caption turn is left out.
            flip: share of the `flippable` rows whose image is mirrored left to right.
            shift: pixels that images of the `flippable` rows are shifted by at most along each axis; the border is
                repeated.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, T) int64, labels -100 where nothing is learnt,
            `pixel_values` (B, 3, S, S) float32 and `ids`; and, counted before anything goes to the device,
            `lengths` (B,), an array of each row's number of real positions, `tokens`, their sum, and
            `answers`, the number of labelled ones.
        """
        rows = np.asarray(indices)
        text = self.table.assemble(
            rows,
            self.max_length,
            self.pad_token_id,
            rng=rng,
            shuffle_turns=shuffle_turns,
            drop_caption=drop_caption,
        )
        mask = np.arange(text.input_ids.shape[1]) < text.lengths[:, None]
        arrays = {"input_ids": text.input_ids, "attention_mask": mask.astype(np.int64), "labels": text.labels}
        batch: dict[str, Any] = {
            name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()
        }
        batch["pixel_values"] = self._pixels(rows, device, rng, flip, shift)
        batch["ids"], batch["lengths"] = [self.ids[i] for i in rows], text.lengths
        batch["tokens"], batch["answers"] = int(text.lengths.sum()), int((text.labels != IGNORE).sum())
        return batch

    def _pixels(
        self,
        rows: np.ndarray,
        device: torch.device | str,
        rng: np.random.Generator | None,
        flip: float,
        shift: int,
    ) -> Tensor:
        index = torch.from_numpy(rows.astype(np.int64)).to(self.images.device)
        pixels = self.images[index].to(device, non_blocking=True)  # (B, 3, S, S) uint8
        if flip or shift:
            if rng is None:
                raise ValueError("flip and shift need rng")
            size, varied = pixels.shape[-1], self.flippable[rows]
            moved = rng.integers(-shift, shift + 1, (2, len(rows))) * varied
            mirrored = varied & (rng.random(len(rows)) < flip)
            down, across = np.clip(np.arange(size) + moved[..., None], 0, size - 1)  # (B, S) each
            across = np.where(mirrored[:, None], across[:, ::-1], across)
            down, across = (torch.from_numpy(places).to(device) for places in (down, across))
            every = torch.arange(len(rows), device=pixels.device).view(-1, 1, 1, 1)
            channels = torch.arange(pixels.shape[1], device=pixels.device).view(1, -1, 1, 1)
            pixels = pixels[every, channels, down[:, None, :, None], across[:, None, None, :]]
        return pixels.float().div_(255).sub_(self._mean.to(device)).div_(self._std.to(device))


def load_split(data: Path, processor: LlavaProcessor, max_length: int, workers: int = 4) -> InMemoryDataset:
    """A split written by `matvlm.data.prepare`, for a model with ``processor``.

    Raises:
        DataError: anything wrong with the split or the processor, a rejected row included: what we prepared
            ourselves has none.
    """
    rows = _sound_rows(data / "conversations.json", data)
    return _in_memory(rows, data, data / "conversations.json", processor, max_length, workers)


def count_rows(data: Path) -> int:
    """Conversations of a split written by `matvlm.data.prepare`, without a look at any of them.

    Raises:
        DataError: there is no such file, or it holds no list.
    """
    path = data / "conversations.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not the conversations of a prepared split: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: must be a JSON list")
    return len(rows)


def load_questions(
    data: Path, processor: LlavaProcessor, max_length: int, workers: int = 4
) -> dict[str, InMemoryDataset]:
    """The questions of a split asked one by one, as in the benchmarks, by task.

    Raises:
        DataError: as `load_split`.
    """
    path = data / "questions.jsonl"
    try:
        tasks: dict[str, list[Row]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            asked = json.loads(line)
            turns = [("human", IMAGE + "\n" + asked["question"]), ("gpt", asked["answer"])]
            messages = [{"from": role, "value": value} for role, value in turns]
            row = {"id": asked["id"], "image": asked["image"], "conversations": messages}
            tasks.setdefault(asked["task"], []).append(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the questions of a prepared split: {error}") from None
    if not tasks:
        raise DataError(f"{path}: holds no question")
    return {name: _in_memory(rows, data, path, processor, max_length, workers) for name, rows in tasks.items()}


def _sound_rows(path: Path, root: Path) -> list[Row]:
    rows, rejected = load_conversations(path, root, check_images=False)
    if rejected:
        listing = f"matvlm check {path} --images {root} --report bad_rows.json"
        raise DataError(f"{_bad_rows(path, rejected)}; to list them all: {listing}")
    return rows


def _in_memory(
    rows: list[Row], root: Path, path: Path, processor: LlavaProcessor, max_length: int, workers: int
) -> InMemoryDataset:
    tokenizer, images, count = processor.tokenizer, processor.image_processor, count_image_tokens(processor)
    if rejected := rows_too_long(rows, tokenizer, count, max_length):
        if len(rejected) == len(rows):
            raise DataError(f"{path}: of {len(rows)} conversations none has an answer within {max_length} tokens")
        raise DataError(_bad_rows(path, rejected))
    pad = tokenizer.pad_token_id
    return InMemoryDataset(
        SegmentTable(rows, tokenizer, count),
        _read_images([row.get("image", "") for row in rows], root, images, workers),
        [row["id"] for row in rows],
        max_length=max_length,
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        mean=images.image_mean,
        std=images.image_std,
    )


def rows_too_long(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, n_image_tokens: int, max_length: int
) -> list[Rejected]:
    """Sound rows of which no answer begins within ``max_length`` tokens; an image takes ``n_image_tokens``."""
    found: list[Rejected] = []
    for index, row in enumerate(rows):
        question, answer = turns_of(row)[0]
        # No tokenizer makes more tokens than bytes: nearly all rows need not be tokenised to know.
        bound = len((SYSTEM + question).encode()) + len(" USER:  ASSISTANT:") + n_image_tokens
        if bound < max_length:
            continue
        try:
            render_conversation([(question, answer)], tokenizer, n_image_tokens, max_length)
        except DataError as error:
            reason = str(error).removeprefix("conversations: ")
            found.append({"row": index, "id": row["id"], "field": "conversations", "reason": reason})
    return found


def _bad_rows(path: Path, rejected: list[Rejected]) -> str:
    first = rejected[0]
    return f"{path}: {len(rejected)} bad rows; {first['id']}: {first['field']}: {first['reason']}"


def _is_small(paths: list[str], root: Path) -> bool:
    """Whether decoding takes so little of reading these images that threads would wait for each other: Python's
    part of it is one thread's at a time."""
    return sum(resolve_image(path, root).stat().st_size for path in paths) < SMALL_FILE * len(paths)


def _read_images(paths: list[str], root: Path, processor: BaseImageProcessor, workers: int) -> Tensor:
    """(N, 3, S, S) uint8."""
    size = processor.size
    crops = getattr(processor, "do_center_crop", None) or getattr(processor, "do_pad", None)
    if not processor.do_resize or crops or set(dict(size)) != {"height", "width"}:
        raise DataError("image processor: only a plain resize to height and width can be preloaded")
    shape, resample = (size["width"], size["height"]), Image.Resampling(processor.resample)
    images = np.empty((len(paths), size["height"], size["width"], 3), dtype=np.uint8)

    def read(index: int) -> None:
        images[index] = np.asarray(open_image(paths[index], root).resize(shape, resample))

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        apart = not _is_small(paths[:: -(-len(paths) // SAMPLE) or 1], root)
        done = (pool.map if apart else map)(read, range(len(paths)))
        for _ in progress(done, f"images of {root.name}", total=len(paths)):
            pass
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
