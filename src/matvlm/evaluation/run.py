"""`python -m matvlm.evaluation.run`: benchmark models through lmms-eval, all in one process.

Importing lmms-eval takes seconds, so one process serves as many models as it is given. Each output folder
appears whole when its model is done: `results.json` and `samples/{task}.jsonl`.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matvlm import config, provenance
from matvlm.errors import UserError, one_line
from matvlm.evaluation.offline import offline
from matvlm.evaluation.questions import check_questions
from matvlm.evaluation.results import identify, make_rows, sample_lines
from matvlm.files import write_json, written_aside


@one_line
def main(argv: list[str] | None = None) -> None:
    """Benchmark models through lmms-eval."""
    args = _parse(argv)
    settings = config.parse_settings(config.Evaluation, args.settings)
    _check_tasks(settings.tasks)
    if len(args.models) != len(args.outs):
        raise UserError(f"--models names {len(args.models)} folders and --outs {len(args.outs)}; one for each")
    if len({out.resolve() for out in args.outs}) != len(args.outs):
        raise UserError("--outs names a folder twice")
    check_questions(args.data, settings.tasks)
    with offline() as cache:
        evaluate(args.models, args.outs, args.data, settings, args.device, cache)


def evaluate(
    models: list[Path], outs: list[Path], data: Path, settings: config.Evaluation, device: str, cache: Path
) -> None:
    """Evaluate each model and write its folder; to be called inside `offline`.

    Raises:
        UserError: a folder that is not a whole model, found before the first one is evaluated; an image that
            cannot be used.
    """
    if find_spec("lmms_eval") is None:
        raise UserError("lmms-eval is not installed; it comes with the extra `evaluate` of this package")
    # Here, because what they import reads the environment, and takes seconds.
    from matvlm.evaluation.harness import Suite
    from matvlm.models.folder import check_folder

    records = [check_folder(folder) for folder in models]
    identities = [identify(folder, record) for folder, record in zip(models, records, strict=True)]
    suite = Suite(data, settings, device, cache)
    device = str(suite.lm.device)
    for number, (folder, out) in enumerate(zip(models, outs, strict=True)):
        title = f"model {number + 1} of {len(models)}"
        print(f"evaluating {title}: {folder}", file=sys.stderr, flush=True)
        cost = provenance.Cost(device)
        results = suite.evaluate(folder, title)
        document = {
            "step": "evaluate",
            "rows": make_rows(results, settings.tasks, identities[number]),
            "provenance": _provenance(folder, records[number], data, settings, device),
            "cost": cost.finish(),
        }
        with written_aside(out) as aside:
            write_json(aside / "results.json", document)
            (aside / "samples").mkdir()
            for task in settings.tasks:
                text = sample_lines(results, task)
                (aside / "samples" / f"{task}.jsonl").write_text(text, encoding="utf-8")


def _provenance(
    folder: Path, record: dict[str, Any], data: Path, settings: config.Evaluation, device: str
) -> dict[str, object]:
    """Provenance of the scores; the configuration's hash covers that of the model's own training."""
    trained = record.get("provenance", {})
    configuration = {"evaluate": settings.model_dump(mode="json"), "model": trained.get("config_hash", "")}
    row = provenance.describe(configuration, data=data, device=device)
    row["model_hash"] = provenance.model_hash(folder)
    row["teacher_hash"] = trained.get("teacher_hash", "") if "cell" in record else row["model_hash"]
    return row


def _check_tasks(tasks: tuple[str, ...]) -> None:
    allowed = f"allowed: {', '.join(config.TASKS)}"
    for task in tasks:
        if task not in config.TASKS:
            raise UserError(f"tasks: unknown task {task!r}; {allowed}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m matvlm.evaluation.run", description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.Evaluation")
    parser.add_argument("--data", required=True, type=Path, help="a prepared split with questions.jsonl")
    parser.add_argument("--models", "--model", required=True, type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--outs", "--out", required=True, type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
