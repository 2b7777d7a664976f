"""`questions.jsonl` of a prepared split, checked before anything slow begins."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, ValidationError

from matvlm.config import Model, explain
from matvlm.data.errors import DataError

YESNO = "easy_vqa_yesno"
"""The task whose scorer takes no answer but yes and no."""


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Question(Model):
    """One line of `questions.jsonl`; ``image`` is relative to the file's folder. Nothing may be empty: an
    empty answer would make an empty prediction right."""

    id: Text
    image: Text
    question: Text
    answer: Text
    task: Text


def check_questions(folder: Path, tasks: tuple[str, ...]) -> Counter[str]:
    """Number of questions of each task.

    Raises:
        DataError: no such file, a line that is not a question, or a task in ``tasks`` without questions.
    """
    path = folder / "questions.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: missing; prepare_data writes it for the splits val and test")
    counts: Counter[str] = Counter()
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = Question.model_validate_json(line)
            except ValidationError as error:
                raise DataError(f"{path}: line {number}: {explain(error)}") from None
            if row.task == YESNO and row.answer.lower() not in ("yes", "no"):
                raise DataError(f"{path}: line {number}: answer: {YESNO} allows yes and no, not {row.answer!r}")
            counts[row.task] += 1
    if missing := [task for task in tasks if not counts[task]]:
        raise DataError(f"{path}: no questions of {', '.join(missing)}")
    return counts
