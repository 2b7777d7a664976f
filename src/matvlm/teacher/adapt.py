"""`python -m matvlm.teacher.adapt`: train tower, connector and adapters of a language model that is given.

Two stages, as LLaVA is trained: tower and connector, the language model being as it is; then these with low-rank
adapters on the language model.
"""

from __future__ import annotations

from pathlib import Path

from matvlm.training import interrupt

if __name__ == "__main__":
    interrupt.listen()  # before what takes seconds to import

import torch
from accelerate import PartialState
from transformers import LlavaForConditionalGeneration

from matvlm import config, provenance
from matvlm.distill.trunk import place
from matvlm.errors import one_line
from matvlm.models.folder import check_folder, load_model
from matvlm.teacher.adapter import add_adapters, save_adapter, vision_weights
from matvlm.teacher.build import check_config
from matvlm.teacher.join import join_given
from matvlm.teacher.stage import Lessons, make_record, parse, split_hashes
from matvlm.training.device import pick_training_device
from matvlm.training.memory import fits
from matvlm.training.ranks import leave, together

STAGES = ("align", "tune")


@one_line
@together
def main(argv: list[str] | None = None) -> None:
    """Train tower, connector and adapters; a run found in --state is continued."""
    args = parse(argv, main.__doc__, config.JoinedTeacher, "--language")
    settings = config.parse_settings(config.JoinedTeacher, args.settings)
    device = pick_training_device(args.device)
    cost = provenance.Cost(str(device))

    training = settings.training
    check_folder(args.language)
    model, processor = join_given(settings, args.language, training.align.seed)
    if training.vision is not None:
        take_tower(model, training.vision)
    # Kept in bfloat16, its weights need not be converted at each use; what is trained has float32 copies.
    short = all(getattr(training, name).precision == "bfloat16" for name in STAGES)
    with fits("the teacher's weights", device):
        place(model, device, torch.bfloat16 if short else torch.float32)
    lessons = Lessons(args, processor)

    configuration = {"teacher": settings.model_dump(mode="json"), "max_length": args.max_length}
    started_from = split_hashes(args) | {
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
        logs[f"{name}.csv"] = lessons.teach(
            model,
            stage,
            state=state / name,
            title=f"train_adapter {name}",
            tensorboard=args.tensorboard / name if args.tensorboard else None,
            cost=cost,
        )
    if PartialState().is_main_process:
        record = make_record("train_adapter", args, configuration, started_from, str(device), cost)
        save_adapter(model, adapted, args.out, record, logs)
    leave()


def take_tower(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Give ``model`` the vision tower of the model in ``folder``.

    Raises:
        UserError: the folder is not whole, or its tower has another architecture.
    """
    given = load_model(folder)
    check_config(
        folder,
        "vision_config",
        model.config,
        given.config,
        asks="teacher.vision asks",
        remedy="set teacher.training.vision to another folder or null",
    )
    with torch.no_grad():
        model.model.vision_tower.load_state_dict(given.model.vision_tower.state_dict())


if __name__ == "__main__":
    raise SystemExit(main())
