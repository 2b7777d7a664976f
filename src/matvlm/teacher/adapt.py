"""`python -m matvlm.teacher.adapt`: train tower, connector and adapters of a language model that is given.

Two stages, as LLaVA is trained: tower and connector, the language model being as it is; then these with low-rank
adapters on the language model.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from matvlm.training import interrupt

if __name__ == "__main__":
    interrupt.listen()  # before what takes seconds to import

import torch
from accelerate import PartialState
from transformers import LlavaForConditionalGeneration

from matvlm import config, provenance
from matvlm.data.dataset import load_questions, load_split
from matvlm.errors import UserError, one_line
from matvlm.models.folder import load_model
from matvlm.teacher.adapter import add_adapters, save_adapter, vision_weights
from matvlm.teacher.join import join_given
from matvlm.teacher.task import TeacherTask, mixed_order
from matvlm.training.device import pick_training_device
from matvlm.training.loop import leave, train
from matvlm.training.memory import fits

STAGES = ("align", "tune")


@one_line
def main(argv: list[str] | None = None) -> None:
    """Train tower, connector and adapters; a run found in --state is continued."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.JoinedTeacher")
    parser.add_argument("--max-length", type=int, required=True)
    for name in ("--language", "--data", "--val", "--state", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--tensorboard", type=Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.JoinedTeacher, args.settings)
    device = pick_training_device(args.device)
    cost = provenance.Cost(str(device))

    training = settings.training
    model, processor = join_given(settings, args.language, training.align.seed)
    if training.vision is not None:
        take_tower(model, training.vision)
    with fits("the teacher's weights", device):
        model.to(device)
    data = load_split(args.data, processor, args.max_length, workers=os.cpu_count() or 1)
    questions = load_questions(args.val, processor, args.max_length)

    configuration = {"teacher": settings.model_dump(mode="json"), "max_length": args.max_length}
    started_from = {
        "data_hash": provenance.data_hash(args.data),
        "val_hash": provenance.data_hash(args.val),
        "language_hash": provenance.model_hash(args.language),
        "vision_hash": provenance.model_hash(training.vision) if training.vision else "",
    }
    # A run that stopped for want of memory goes on with a smaller micro-batch.
    decisive = settings.model_dump(
        mode="json", exclude={"training": {stage: {"micro_batch_size"} for stage in STAGES}}
    )
    state = args.state / provenance.settings_hash(configuration | {"teacher": decisive} | started_from)
    model.requires_grad_(False)
    for weight in vision_weights(model).values():
        weight.requires_grad_(True)
    logs = {}
    for name in STAGES:
        stage: config.AnswerTraining = getattr(training, name)
        if name == "tune":
            adapted = add_adapters(model, training.lora, stage.seed).to(device)
        logs[f"{name}.csv"] = train(
            TeacherTask(model, data, questions, stage),
            stage,
            mixed_order(data, stage),
            seed=stage.seed,
            state=state / name,
            title=f"train_adapter {name}",
            tensorboard=args.tensorboard / name if args.tensorboard else None,
            cost=cost,
        )
    if PartialState().is_main_process:
        record = {
            "step": "train_adapter",
            "started_from": started_from,
            "provenance": provenance.describe(configuration, data=args.data, device=str(device)),
            "cost": cost.finish(PartialState().num_processes),
        }
        save_adapter(model, adapted, args.out, record, logs)
    leave()


def take_tower(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Give ``model`` the vision tower of the model in ``folder``.

    Raises:
        UserError: the folder is not whole, or its tower has another architecture.
    """
    given = load_model(folder)
    wanted, found = (m.config.vision_config.to_diff_dict() for m in (model, given))
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key) and key != "dtype":
            raise UserError(
                f"{folder / 'config.json'}: vision_config.{key} is {found.get(key)!r}, but teacher.vision asks "
                f"for {wanted.get(key)!r}; set teacher.training.vision to another folder or null"
            )
    with torch.no_grad():
        model.model.vision_tower.load_state_dict(given.model.vision_tower.state_dict())


if __name__ == "__main__":
    raise SystemExit(main())
