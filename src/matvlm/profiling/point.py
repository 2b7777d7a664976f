"""`python -m matvlm.profiling.point`: measure one point in this process, which has done nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from matvlm import config
from matvlm.errors import one_line
from matvlm.files import write_json
from matvlm.models.folder import load_model
from matvlm.models.initialise import build_student
from matvlm.profiling.measure import check_points, measure_point
from matvlm.profiling.points import Point
from matvlm.training.device import pick_device


def measure(
    settings: config.Profile, teacher: Path, layout: str | None, point: Point, device: torch.device
) -> list[dict[str, object]] | None:
    """Rows of `measure_point`, or None where memory does not suffice.

    Args:
        layout: a hybrid of ``teacher`` with this layout is measured, initialised from its attention. It is
            untrained: what a step costs does not depend on what the weights hold.

    Raises:
        UserError: the teacher, the layout or a point of ``settings`` cannot be used.
    """
    model = load_model(teacher)
    if layout is not None:
        model = build_student(model, layout, "attention", seed=0)
    check_points(model, settings)
    try:
        return measure_point(model.to(device), point, settings)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the words of the CPU allocator
            raise
        return None


@one_line
def main(argv: list[str] | None = None) -> None:
    """Measure one point."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.Profile")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--layout", help="measure a hybrid of the teacher")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--generated-tokens", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.Profile, args.settings)
    torch.set_num_threads(settings.threads)
    point = Point(args.prompt_tokens, args.generated_tokens, args.batch)
    write_json(args.out, measure(settings, args.teacher, args.layout, point, pick_device(args.device)))


if __name__ == "__main__":
    raise SystemExit(main())
