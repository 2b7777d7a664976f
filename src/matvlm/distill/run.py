"""`python -m matvlm.distill.run`: train one student against its teacher."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from matvlm.training import interrupt

if __name__ == "__main__":
    interrupt.listen()  # before what takes seconds to import

import numpy as np
import torch
from accelerate import PartialState

from matvlm import config, provenance
from matvlm.data.dataset import load_split
from matvlm.data.processor import load_processor
from matvlm.distill.cache.manifest import fingerprint
from matvlm.distill.cache.read import CacheReader
from matvlm.distill.forward import Needs
from matvlm.distill.shard import check_sharding, frozen_bytes, shard_frozen, whole
from matvlm.distill.targets import Cached, Online, Tower
from matvlm.distill.task import DistillTask, Objective, compile_layers, select_trainable
from matvlm.distill.trunk import load_teacher, place
from matvlm.errors import UserError, one_line
from matvlm.models.folder import check_folder, load_model, read_config, save_model
from matvlm.training.device import pick_training_device
from matvlm.training.loop import train
from matvlm.training.memory import room
from matvlm.training.order import Order
from matvlm.training.ranks import count, leave, open_group, together


@one_line
@together
def main(argv: list[str] | None = None) -> None:
    """Train one student against its teacher; a run found in --state is continued."""
    args = _parse(argv)
    settings = config.parse_settings(config.Distillation, args.settings)
    cell = {key: getattr(args, key) for key in ("init", "layout", "loss", "divergence", "seed")}
    if settings.reduction == "release" and args.cache is not None:
        raise UserError(
            "distill.reduction: release needs cache.mode: online; its losses include padding, which no cache holds"
        )
    depends = _cache_fingerprint(args)
    objective = Objective.of(args.loss, args.divergence, settings)
    reader = None if depends is None else _open_cache(args, depends, objective)
    device = pick_training_device(args.device, settings.deterministic)
    if settings.shard_frozen:
        check_sharding(settings, count())
        open_group(on_cpu=device.type == "cpu")
    cost = provenance.Cost(str(device))

    _check_start(args.init_dir, cell, args.teacher)
    title = f"distill {args.init} {args.layout} {args.loss} {args.divergence} seed {args.seed}"
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    with room(title, settings):
        start = torch.device("cpu") if settings.shard_frozen else device
        student = place(load_model(args.init_dir), start, dtype)
        trained = select_trainable(student)
        teacher = load_teacher(args.teacher, student)
        if settings.shard_frozen:
            shard_frozen(student, teacher, device)
            held, size = frozen_bytes(student, teacher)
            print(f"holding {held:,} of {size:,} bytes of frozen weights", file=sys.stderr)
        if settings.compile:
            compile_layers(teacher.model.language_model)
    size = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    print(f"training {size:,} weights: {_summary(trained)}", file=sys.stderr)

    processor = load_processor(args.teacher)
    data = load_split(args.data, processor, args.max_length).vary()
    validation = load_split(args.val, processor, args.max_length).vary()
    if reader is not None:
        source = Cached(reader, device)
    elif objective.needs(student.config.text_config.mamba_layers) == Needs():
        source = Tower(student)
    else:
        source = Online(teacher)
    order = Order(np.arange(len(data)), settings.batch_size, args.seed, settings.shuffle_block)
    with room(title, settings):
        task = DistillTask(student, data, source, objective, (validation, Online(teacher)))
        del teacher  # which goes, if all that needed it was validation
        norms = task.gradient_norms(order(0)[: settings.micro_batch_size])
    configuration = {
        "distill": settings.model_dump(mode="json"),
        "max_length": args.max_length,
        "cache": depends or "online",
        "val_hash": provenance.data_hash(args.val),
        **cell,
    }
    decisive = configuration | {"distill": _decisive(settings)} | _inputs(args)
    print(f"gradient norms at the start: {', '.join(f'{k} {v:.3g}' for k, v in norms.items())}", file=sys.stderr)
    with room(title, settings):
        log = train(
            task,
            settings,
            order,
            seed=args.seed,
            state=args.state / provenance.settings_hash(decisive),
            title=title,
            tensorboard=args.tensorboard,
            cost=cost,
        )
    if PartialState().is_main_process:
        record = {
            "step": "distill",
            "cell": cell,
            "trained": trained,
            "gradient_norms_at_start": norms,
            "provenance": provenance.describe(
                configuration, data=args.data, teacher=args.teacher, device=str(device)
            ),
            "cost": cost.finish(PartialState().num_processes),
        }
        model = whole(args.init_dir, student, dtype) if settings.shard_frozen else student
        save_model(model.eval(), args.out, record, like=args.teacher, extra={"log.csv": log})
    leave()


def _cache_fingerprint(args: argparse.Namespace) -> dict | None:
    """What the cache given must have been made of and with; none where the teacher runs online."""
    if args.cache is None:
        return None
    if args.cache_settings is None:
        raise UserError("--cache-settings: required with --cache; JSON of matvlm.config.Cache")
    settings = config.parse_settings(config.Cache, args.cache_settings, option="--cache-settings")
    if settings.mode == "online":
        raise UserError("--cache: not allowed where cache.mode is online; leave it out, or set mode full or topk")
    return fingerprint(settings, args.teacher, args.data, args.max_length)


def _open_cache(args: argparse.Namespace, depends: dict, objective: Objective) -> CacheReader:
    """The cache given, once it is known to have what this cell asks of it."""
    settings = objective.settings
    reader = CacheReader(args.cache, depends, whole=settings.shuffle_block is not None)
    if depends["mode"] == "topk" and (args.divergence == "l2" or settings.temperature != 1.0):
        raise UserError(
            f"{args.cache}: a top-k cache serves kl, reverse, jsd and ce at temperature 1, not "
            f"{args.divergence} at {settings.temperature:g}; set cache.mode to full or online"
        )
    size = reader.manifest.get("shard_size")
    if settings.shuffle_block not in (None, size):
        raise UserError(
            f"distill.shuffle_block: {settings.shuffle_block} is not the size of a shard of {args.cache}, {size}; "
            "allowed: that, or null"
        )
    if "layer" in objective.terms:
        reader.require(getattr(read_config(args.init_dir).text_config, "mamba_layers", ()))
    return reader


def _check_start(folder: Path, cell: dict[str, object], teacher: Path) -> None:
    """Refuse to name a student after another initialisation, layout or seed than it has, and to distil into it
    another teacher than it was made of."""
    record = check_folder(folder)
    for key in ("init", "layout", "seed"):
        if record.get(key) != cell[key]:
            raise UserError(f"{folder}: was made with {key} {record.get(key)!r}, but --{key} is {cell[key]!r}")
    origin = record.get("provenance")
    made_of = origin.get("teacher_hash") if isinstance(origin, dict) else None
    if made_of != (given := provenance.model_hash(teacher)):
        raise UserError(f"{folder}: was made of the teacher {made_of}, but --teacher {teacher} is {given}")


def _decisive(settings: config.Distillation) -> dict:
    """What of the settings a run's results depend on, by more than rounding and the draws of dropout: a run that
    stopped for want of memory goes on where it was with a smaller micro-batch."""
    how = {"gradient_checkpointing", "head_chunk", "compile", "deterministic", "shard_frozen"}
    if settings.reduction == "token":  # the release's losses are norms and means of each micro-batch
        how.add("micro_batch_size")
    return settings.model_dump(mode="json", exclude=how)


def _inputs(args: argparse.Namespace) -> dict[str, str]:
    """Hashes of what a run starts from, so that state of another teacher or data is never resumed."""
    return {
        "teacher_hash": provenance.model_hash(args.teacher),
        "init_hash": provenance.model_hash(args.init_dir),
        "data_hash": provenance.data_hash(args.data),
    }


def _summary(names: list[str]) -> str:
    """The trained tensors, each Mamba-2 mixer as one name."""
    return ", ".join(dict.fromkeys(n.split(".mamba.")[0] + ".mamba" if ".mamba." in n else n for n in names))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.Distillation")
    parser.add_argument("--max-length", type=int, required=True)
    for name in ("--init-dir", "--teacher", "--data", "--val", "--state", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--cache", "--tensorboard"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--cache-settings", help="JSON of matvlm.config.Cache; required with --cache")
    parser.add_argument("--layout", required=True)
    allowed = {"init": config.Init, "loss": config.LossSet}
    for name, values in allowed.items():
        parser.add_argument(f"--{name}", choices=get_args(values), required=True)
    parser.add_argument("--divergence", choices=("none", *get_args(config.Divergence)), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
