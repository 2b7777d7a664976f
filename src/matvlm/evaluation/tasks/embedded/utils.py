"""What the YAML files of the embedded tasks call."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from lmms_eval.tasks.pope import utils as lmms_pope
from PIL import Image

from matvlm.data.images import open_image

Doc = dict[str, Any]
"""A row of `questions.jsonl`: id, image, question, answer, task."""


def _only(task: str, docs: Dataset) -> Dataset:
    """The questions of one task, in the order of the file."""
    return docs.select([i for i, name in enumerate(docs["task"]) if name == task])


only_easy_vqa_yesno = partial(_only, "easy_vqa_yesno")
only_easy_vqa_open = partial(_only, "easy_vqa_open")
only_sort_of_clevr_nonrelational = partial(_only, "sort_of_clevr_nonrelational")
only_sort_of_clevr_relational = partial(_only, "sort_of_clevr_relational")


def doc_to_text(doc: Doc, kwargs: dict[str, str]) -> str:
    """The question as it stands; the model puts it into its own prompt."""
    return doc["question"]


def doc_to_visual(doc: Doc, kwargs: dict[str, str]) -> list[Image.Image]:
    """The question's image, from the folder ``kwargs["image_root"]``.

    Raises:
        DataError: an image that is missing, damaged, or outside that folder.
    """
    return [_image(doc["image"], kwargs["image_root"])]


@lru_cache(maxsize=4096)  # the images are small, and every model of a run sees the same ones
def _image(path: str, root: str) -> Image.Image:
    return open_image(path, Path(root))


def is_right(prediction: str, answer: str) -> bool:
    """Whether they agree but for case and white space around them; an empty prediction is wrong."""
    return prediction.lower().strip() == answer.lower().strip()


def exact_match(doc: Doc, results: list[str]) -> dict[str, float]:
    """Metric ``accuracy`` of one question: 1 or 0."""
    return {"accuracy": float(is_right(results[0], doc["answer"]))}


def pope(doc: Doc, results: list[str]) -> dict[str, dict[str, Any]]:
    """One yes/no question as POPE's scorer wants it, its metrics without the prefix ``pope_``."""
    scores = lmms_pope.pope_process_results({**doc, "question_id": doc["id"]}, results)
    return {name.removeprefix("pope_").removesuffix("_score"): score for name, score in scores.items()}
