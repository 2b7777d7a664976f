"""What is learnt from and asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from matvlm.validation import Model, NonNegativeInt, PositiveInt

Seed = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
"""A step of training is seeded with this many bits, and 32 more for the step."""
Split = Literal["train", "distill", "val", "test"]
"""The place of a split in this list goes into the seeds of its scenes: do not reorder."""


class SplitSize(Model):
    """Number of images of each source in one split."""

    easy_vqa: NonNegativeInt
    """easy-VQA's images; the package has 4,000 for train, distill and val together, and 1,000 for test."""
    sort_of_clevr: NonNegativeInt
    """Sort-of-CLEVR's scenes, which are drawn."""


class EmbeddedData(Model):
    """The data that needs no download: easy-VQA and Sort-of-CLEVR."""

    source: Literal["embedded"] = "embedded"
    """Kind of data."""
    seed: Seed = 0
    """Seed of the split of easy-VQA, of the scenes and of the order of rows and questions."""
    splits: dict[Split, SplitSize] = Field(json_schema_extra={"required": ["train", "distill", "val", "test"]})
    """Size of each split: train (for the teacher), distill (for the students), val and test, all of them."""
    max_length: PositiveInt = 512
    """Tokens kept of a conversation, image tokens included."""

    @model_validator(mode="after")
    def _splits_fit(self) -> EmbeddedData:
        missing = [name for name in ("train", "distill", "val", "test") if name not in self.splits]
        if missing:
            raise ValueError(f"splits lacks {', '.join(missing)}")
        used = sum(self.splits[name].easy_vqa for name in ("train", "distill", "val"))
        if used > 4000:
            raise ValueError(f"train, distill and val take {used} easy_vqa images; the package has 4000")
        for name in ("distill", "val", "test"):
            if not self.splits[name].easy_vqa + self.splits[name].sort_of_clevr:
                raise ValueError(f"splits.{name} has no images; students are trained and scored on it")
        if self.splits["test"].easy_vqa > 1000:
            raise ValueError("test takes more easy_vqa images than the 1000 of the package")
        return self


class LlavaData(Model):
    """A conversation file in the LLaVA format on disk, as the paper's 665k mix is."""

    source: Literal["llava"]
    """Kind of data."""
    seed: Seed = 0
    """Seed of the draw of the rows held out."""
    conversations: Path
    """JSON file with a list of conversations."""
    images: Path
    """Folder that the images' paths are relative to."""
    val_rows: PositiveInt = 2000
    """Rows held out, by a seeded draw of whole images, to measure validation losses on."""
    max_length: PositiveInt = 1428
    """Tokens kept of a conversation, image tokens included."""
