"""One measurement of one point, in a process that has done nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from matvlm import config
from matvlm.errors import UserError
from matvlm.files import write_json
from matvlm.models.folder import load_model
from matvlm.models.initialise import build_student
from matvlm.profiling.measure import check_points, measure_memory, time_point
from matvlm.profiling.points import Point
from matvlm.training.device import pick_device

Row = dict[str, object]


@dataclass(frozen=True)
class Job:
    """What one process measures.

    ``layout``: of a hybrid of ``teacher``, initialised from its attention, or none for the teacher. The hybrid is
    untrained: what a step costs does not depend on what the weights hold. ``memory``: measure that too.
    """

    settings: config.Profile
    teacher: Path
    layout: str | None
    point: Point
    device: str
    memory: bool


def measure(job: Job) -> Row | None:
    """Figures of one measurement, or None where memory does not suffice.

    Raises:
        UserError: the teacher, the layout or a point of the settings cannot be used.
    """
    torch.set_num_threads(job.settings.threads)
    model = load_model(job.teacher)
    if job.layout is not None:
        model = build_student(model, job.layout, "attention", seed=0)
    check_points(model, job.settings)
    try:
        model = model.to(pick_device(job.device))
        row: Row = {**time_point(model, job.point, job.settings)}
        return row | (measure_memory(model, job.point) if job.memory else {})
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the words of the CPU allocator
            raise
        return None


def run(job: Job, out: Path) -> None:
    """Write what `measure` finds to ``out`` as JSON: `row`, or `error` where a user's input is at fault."""
    try:
        write_json(out, {"row": measure(job)})
    except UserError as error:
        write_json(out, {"error": str(error)})
