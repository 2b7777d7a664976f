"""easy-VQA, from the Python package of that name: one shape on a 64 x 64 image, and questions about it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import easy_vqa
import numpy as np

from matvlm.data.errors import DataError

ID_PREFIX = "easy_vqa"


@dataclass(frozen=True)
class Picture:
    """An image of the package with its (question, answer) pairs, in the package's order."""

    name: str
    path: Path
    turns: tuple[tuple[str, str], ...]


def pick(split: str, seed: int, sizes: dict[str, int]) -> list[Picture]:
    """The pictures of one split.

    The package's test images are `test`; its training images, in an order drawn with ``seed``, are divided:
    train from the front, val from the end and distill before it, so that those two stay when train grows.

    Args:
        split: `train`, `distill`, `val` or `test`. sizes: pictures of each of these.

    Raises:
        DataError: more pictures asked for than there are.
    """
    own = "test" if split == "test" else "train"
    pictures = _read(own)
    order = np.random.default_rng(np.random.SeedSequence([seed, own == "test"])).permutation(len(pictures))
    names = ("test",) if own == "test" else ("train", "distill", "val")
    if (wanted := sum(sizes[name] for name in names)) > len(order):
        raise DataError(f"splits.{'+'.join(names)}.easy_vqa: {wanted} images; the package has {len(order)}")
    size = sizes[split]
    start = {
        "train": 0,
        "test": 0,
        "val": len(order) - size,
        "distill": len(order) - sizes.get("val", 0) - size,
    }[split]
    return [pictures[i] for i in order[start : start + size]]


def sentences() -> list[str]:
    """Every question and answer of the package."""
    train, test = easy_vqa.get_train_questions(), easy_vqa.get_test_questions()
    return sorted({*train[0], *train[1], *test[0], *test[1]})


def _read(own: str) -> list[Picture]:
    """All pictures of the package's `train` or `test`, in the order of their numbers."""
    read_questions = {"train": easy_vqa.get_train_questions, "test": easy_vqa.get_test_questions}[own]
    read_paths = {"train": easy_vqa.get_train_image_paths, "test": easy_vqa.get_test_image_paths}[own]
    turns = defaultdict(list)
    for question, answer, image in zip(*read_questions(), strict=True):
        turns[image].append((question, answer))
    paths = read_paths()
    return [
        Picture(f"{ID_PREFIX}_{own}_{image:04d}", Path(paths[image]), tuple(turns[image]))
        for image in sorted(paths)
    ]
