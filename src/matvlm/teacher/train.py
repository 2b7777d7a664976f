"""`python -m matvlm.teacher.train`: train the embedded teacher from scratch."""

from __future__ import annotations

from matvlm.training import interrupt

if __name__ == "__main__":
    interrupt.listen()  # before what takes seconds to import

from accelerate import PartialState

from matvlm import config, provenance
from matvlm.data.processor import build_processor
from matvlm.data.tokenizer import build_tokenizer
from matvlm.errors import one_line
from matvlm.models.folder import save_model
from matvlm.teacher.build import build_teacher, load_given
from matvlm.teacher.stage import Lessons, make_record, parse, split_hashes
from matvlm.training.device import pick_training_device
from matvlm.training.memory import fits
from matvlm.training.ranks import leave, together


@one_line
@together
def main(argv: list[str] | None = None) -> None:
    """Train the embedded teacher; a run found in --state is continued."""
    args = parse(argv, main.__doc__, config.EmbeddedTeacher)
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
    lessons = Lessons(args, processor)

    configuration = {"teacher": settings.model_dump(mode="json"), "max_length": args.max_length}
    started_from = split_hashes(args) | {"start_hash": provenance.model_hash(start) if start else ""}
    # A run that stopped for want of memory goes on with a smaller micro-batch.
    decisive = settings.model_dump(mode="json", exclude={"training": {"micro_batch_size"}})
    log = lessons.teach(
        model,
        settings.training,
        state=args.state / provenance.settings_hash(configuration | {"teacher": decisive} | started_from),
        title="train_teacher",
        tensorboard=args.tensorboard,
        cost=cost,
    )
    if PartialState().is_main_process:
        record = make_record("train_teacher", args, configuration, started_from, str(device), cost)
        save_model(model.cpu().eval(), args.out, record, processor=processor, extra={"log.csv": log})
    leave()


if __name__ == "__main__":
    raise SystemExit(main())
