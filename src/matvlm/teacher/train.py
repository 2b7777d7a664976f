"""`python -m matvlm.teacher.train`: train the embedded teacher from scratch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from matvlm.training import interrupt

if __name__ == "__main__":
    interrupt.listen()  # before what takes seconds to import

from accelerate import PartialState

from matvlm import config, provenance
from matvlm.data.dataset import load_questions, load_split
from matvlm.data.processor import build_processor
from matvlm.data.tokenizer import build_tokenizer
from matvlm.errors import one_line
from matvlm.models.folder import save_model
from matvlm.teacher.build import build_teacher, load_given
from matvlm.teacher.task import TeacherTask, mixed_order
from matvlm.training.device import pick_training_device
from matvlm.training.loop import leave, train
from matvlm.training.memory import fits


@one_line
def main(argv: list[str] | None = None) -> None:
    """Train the embedded teacher; a run found in --state is continued."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.EmbeddedTeacher")
    parser.add_argument("--max-length", type=int, required=True)
    for name in ("--data", "--val", "--state", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--tensorboard", type=Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.EmbeddedTeacher, args.settings)
    device = pick_training_device(args.device)
    cost = provenance.Cost(str(device))

    tokenizer = build_tokenizer()
    processor = build_processor(
        tokenizer,
        settings.vision.image_size,
        settings.vision.patch_size,
        settings.vision_feature_select_strategy,
    )
    ids = {"image": processor.image_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    start = settings.training.start
    if start is None:
        model = build_teacher(settings, vocab_size=len(tokenizer), token_ids=ids, seed=settings.training.seed)
    else:
        model = load_given(settings, start)
    with fits("the teacher's weights", device):
        model.to(device)
    data = load_split(args.data, processor, args.max_length, workers=os.cpu_count() or 1)
    questions = load_questions(args.val, processor, args.max_length)

    configuration = {"teacher": settings.model_dump(mode="json"), "max_length": args.max_length}
    started_from = {
        "data_hash": provenance.data_hash(args.data),
        "val_hash": provenance.data_hash(args.val),
        "start_hash": provenance.model_hash(start) if start else "",
    }
    # A run that stopped for want of memory goes on with a smaller micro-batch.
    decisive = settings.model_dump(mode="json", exclude={"training": {"micro_batch_size"}})
    log = train(
        TeacherTask(model, data, questions, settings.training),
        settings.training,
        mixed_order(data, settings.training),
        seed=settings.training.seed,
        state=args.state / provenance.settings_hash(configuration | {"teacher": decisive} | started_from),
        title="train_teacher",
        tensorboard=args.tensorboard,
        cost=cost,
    )
    if PartialState().is_main_process:
        record = {
            "step": "train_teacher",
            "started_from": started_from,
            "provenance": provenance.describe(configuration, data=args.data, device=str(device)),
            "cost": cost.finish(PartialState().num_processes),
        }
        save_model(model.cpu().eval(), args.out, record, processor=processor, extra={"log.csv": log})
    leave()


if __name__ == "__main__":
    raise SystemExit(main())
