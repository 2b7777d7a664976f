"""What training a teacher takes, whatever it is made of: the command line, the data, a stage, and its record."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from accelerate import PartialState
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from matvlm import config, provenance
from matvlm.data.dataset import load_questions, load_split
from matvlm.teacher.task import TeacherTask, mixed_order
from matvlm.training.loop import train


def parse(
    argv: list[str] | None, description: str | None, kind: type[config.Architecture], *folders: str
) -> argparse.Namespace:
    """The command line of a step that trains a ``kind`` of teacher; ``folders``: options that it alone has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--settings", required=True, help=f"JSON of matvlm.config.{kind.__name__}")
    parser.add_argument("--max-length", type=int, required=True)
    for name in (*folders, "--data", "--val", "--state", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--tensorboard", type=Path)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(argv)


class Lessons:
    """The conversations that a teacher learns from, and the questions that it is asked meanwhile.

    Args:
        args: as `parse` returns them.

    Raises:
        DataError: anything wrong with them.
    """

    def __init__(self, args: argparse.Namespace, processor: LlavaProcessor) -> None:
        self.data = load_split(args.data, processor, args.max_length, workers=os.cpu_count() or 1)
        self.questions = load_questions(args.val, processor, args.max_length)

    def teach(self, model: LlavaForConditionalGeneration, settings: config.AnswerTraining, **options) -> str:
        """Train what of ``model`` requires gradients; returns the text of the log. ``options``: of `train`."""
        task = TeacherTask(model, self.data, self.questions, settings)
        return train(task, settings, mixed_order(self.data, settings), seed=settings.seed, **options)


def split_hashes(args: argparse.Namespace) -> dict[str, str]:
    """Hashes of the splits that a run starts from."""
    return {"data_hash": provenance.data_hash(args.data), "val_hash": provenance.data_hash(args.val)}


def make_record(
    step: str,
    args: argparse.Namespace,
    configuration: dict,
    started_from: dict[str, str],
    device: str,
    cost: provenance.Cost,
) -> dict:
    """What `provenance.json` says of a run beside the hashes of its files."""
    return {
        "step": step,
        "started_from": started_from,
        "provenance": provenance.describe(configuration, data=args.data, device=device),
        "cost": cost.finish(PartialState().num_processes),
    }
