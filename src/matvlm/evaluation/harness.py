"""lmms-eval at work. Import this inside `matvlm.evaluation.offline.offline`."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.task import Task
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager, get_task_dict
from PIL import ImageFile

from matvlm.config import Evaluation
from matvlm.evaluation.model import MatVLM

# lmms-eval sets this for the whole process when it is imported; here a damaged image is an error.
ImageFile.LOAD_TRUNCATED_IMAGES = False

TASK_FOLDER = Path(__file__).parent / "tasks"


class Suite:
    """The tasks, loaded once, and one lmms-eval model into which the models are put one after another.

    Args:
        data: folder of a prepared split with `questions.jsonl`.
        settings: tasks, limit, batch size and answer length.
        device: as `matvlm.training.device.pick_device` reads it.
        cache: folder for the data sets' Arrow files.
    """

    def __init__(self, data: Path, settings: Evaluation, device: str, cache: Path) -> None:
        self.settings = settings
        self.manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)
        self.tasks = load_tasks(self.manager, data, settings, cache)
        self.lm = MatVLM(batch_size=settings.batch_size, device=device)

    def evaluate(self, folder: Path, title: str) -> dict[str, Any]:
        """lmms-eval's own results of the model in ``folder``, samples included.

        Raises:
            UserError: the folder is not a whole model, or an image of the data cannot be used.
        """
        if self.lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.lm.device)  # each model's cost is its own
        self.lm.load(folder)
        self.lm.title = title
        return simple_evaluate(
            model=self.lm,
            tasks=self.tasks,
            task_manager=self.manager,
            batch_size=self.settings.batch_size,
            limit=self.settings.limit,
            bootstrap_iters=0,
            log_samples=True,
            process_docs_parallel=1,
        )


def load_tasks(manager: TaskManager, data: Path, settings: Evaluation, cache: Path) -> list[Task]:
    """The tasks of ``settings`` on the data in the folder ``data``."""
    # `datasets` takes a file's name for a pattern.
    questions = glob.escape(str((data / "questions.jsonl").resolve()))
    configs = [
        {
            "task": name,
            "dataset_kwargs": {"data_files": {"test": questions}, "cache_dir": str(cache)},
            "lmms_eval_specific_kwargs": {"image_root": str(data)},
            "generation_kwargs": {"max_new_tokens": settings.max_new_tokens, "do_sample": False},
        }
        for name in settings.tasks
    ]
    return list(get_task_dict(configs, manager).values())
