"""What a top-k cache costs in accuracy, and what any cache costs in time beside a teacher that runs online.

    python benchmarks/cache.py --preset tiny --teacher runs/tiny/teacher --data runs/tiny/data/distill \\
        --students start=runs/tiny/init/… end=runs/tiny/distill/…

Accuracy: each divergence that a top-k cache serves, from all logits (in float64) and from the top k as training
computes it (in float32), its mean over the real positions of the first --rows conversations, for every student and
k; of the KL with --draws tokens drawn from the tail too. A k of the vocabulary's size or more is everything.

Time: seconds of a training step of the last student, all three losses, as the training loop takes it, with the
next batch read beside. `step_s` is the mean over a run's steps but the first and last, so that waiting for a shard
counts; the kinds of cache take turns in every repeat, and a ratio is that to `online` of the same repeat. `mapped`
reads rows in any order, `whole` shard after shard. `full` is all logits of the split: of a large vocabulary, more
than a disk may have (--modes topk). `cpu_s` is processor time a step, what is read beside included: on a machine
that others use too, it is what can be compared.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_rows import kept
from torch import Tensor

from matvlm import provenance
from matvlm.config import Cache, Distillation, Preset, read_config
from matvlm.data.dataset import InMemoryDataset, load_split
from matvlm.data.processor import load_processor
from matvlm.distill.cache.read import CacheReader
from matvlm.distill.cache.write import Writer
from matvlm.distill.forward import Needs, teacher_pass
from matvlm.distill.losses import TopK, prob_divergence
from matvlm.distill.targets import Cached, Online
from matvlm.distill.task import DistillTask, Objective, select_trainable
from matvlm.distill.trunk import load_teacher, place
from matvlm.errors import UserError, one_line
from matvlm.files import csv_text, write_text
from matvlm.models.folder import load_model
from matvlm.training.device import pick_training_device
from matvlm.training.loop import train
from matvlm.training.order import Order

DIVERGENCES = ("kl", "reverse", "jsd", "ce")
MODES = ("full", "topk")
KINDS = (("online", ""), ("full", "mapped"), ("full", "whole"), ("topk", "mapped"), ("topk", "whole"))
MEASURED = (
    *("measure", "student", "student_hash", "divergence", "k", "draws", "vocabulary", "positions"),
    *("exact_nats", "topk_nats", "error_nats", "relative_error", "mean_absolute_error_nats"),
    *("mode", "reading", "repeat", "step_s", "median_step_s", "cpu_s", "ratio_to_online", "bytes"),
)
SETTING = ("preset", "command", "rows", "max_length", "batch", "micro_batch", "precision", "steps")
ORIGIN = (
    *("commit", "dirty", "teacher_hash", "data_hash"),
    *("torch", "transformers", "mamba_ssm", "causal_conv1d", "device", "kernel_path"),
)
CHUNK = 1024
"""Positions whose logits are held at a time."""


def accuracy(
    teacher: torch.nn.Module, students: dict[str, Path], data: InMemoryDataset, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each student, divergence, k and number of draws; only the KL uses them."""
    keys = list(itertools.product(DIVERGENCES, args.ks, [0]))
    keys += [("kl", k, args.draws) for k in args.ks if args.draws]
    for name, path in students.items():
        student = load_model(path).to(teacher.device)
        sums = dict.fromkeys(keys, torch.zeros(3, dtype=torch.float64))
        draw = torch.Generator(teacher.device).manual_seed(0)
        positions = 0
        for theirs, ours in logits(teacher, student, data, args.rows):
            positions += len(ours)
            exact = {d: prob_divergence(ours.double(), theirs.double(), d) for d in DIVERGENCES}
            tops = {size: TopK.of(theirs, *size, draw) for size in dict.fromkeys(key[1:] for key in keys)}
            for key in keys:
                divergence, size = key[0], key[1:]
                found = prob_divergence(ours, tops[size], divergence).double()
                error = found - exact[divergence]
                parts = torch.stack([exact[divergence].sum(), found.sum(), error.abs().sum()])
                sums[key] = sums[key] + parts.cpu()
        for divergence, k, draws in keys:
            exact, found, absolute = (float(value) / positions for value in sums[divergence, k, draws])
            yield {
                "measure": "accuracy",
                "student": name,
                "student_hash": provenance.model_hash(path),
                "divergence": divergence,
                "k": k,
                "draws": draws,
                "vocabulary": teacher.config.text_config.vocab_size,
                "positions": positions,
                "exact_nats": f"{exact:.8g}",
                "topk_nats": f"{found:.8g}",
                "error_nats": f"{found - exact:.3g}",
                "relative_error": f"{abs(found - exact) / exact:.3g}",
                "mean_absolute_error_nats": f"{absolute:.3g}",
            }


@torch.no_grad()
def logits(
    teacher: torch.nn.Module, student: torch.nn.Module, data: InMemoryDataset, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The teacher's and the student's (n, v) at real positions, `CHUNK` at a time."""
    models = (teacher, student)
    for start in range(0, rows, 4):
        batch = data.batch(np.arange(start, min(start + 4, rows)), teacher.device)
        real = batch["attention_mask"].bool()
        hidden = [teacher_pass(model, batch, Needs(scores=True)).hidden[real] for model in models]
        for parts in zip(*(states.split(CHUNK) for states in hidden), strict=True):
            theirs, ours = (model.lm_head(part).float() for model, part in zip(models, parts, strict=True))
            yield theirs, ours


def times(preset: Preset, args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each repeat and kind of cache."""
    data = load_split(args.data, load_processor(args.teacher), preset.data.max_length).vary()
    name, path = list(args.students.items())[-1]
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        caches = {mode: make_cache(mode, preset, args, device, Path(scratch)) for mode in args.modes}
        sizes = {mode: sum(file.stat().st_size for file in folder.iterdir()) for mode, folder in caches.items()}
        for repeat in range(args.repeats):
            online = None
            for mode, reading in [kind for kind in KINDS if kind[0] in ("online", *args.modes)]:
                cache = caches.get(mode)
                found, work = steps(path, data, cache, reading == "whole", preset, args, device, Path(scratch))
                mean = statistics.mean(found)
                online = mean if online is None else online
                print(f"repeat {repeat}: {mode} {reading} {mean:.4f} s", file=sys.stderr)
                yield {
                    "measure": "step",
                    "student": name,
                    "student_hash": provenance.model_hash(path),
                    "k": args.step_k if mode == "topk" else "",
                    "draws": args.draws if mode == "topk" else "",
                    "mode": mode,
                    "reading": reading,
                    "repeat": repeat,
                    "step_s": f"{mean:.5g}",
                    "median_step_s": f"{statistics.median(found):.5g}",
                    "cpu_s": f"{work:.5g}",
                    "ratio_to_online": f"{mean / online:.4f}",
                    "bytes": sizes.get(mode, 0),
                }


def make_cache(mode: str, preset: Preset, args: argparse.Namespace, device: torch.device, scratch: Path) -> Path:
    """A cache of all layers' states in the type that the preset's has."""
    chosen = {"mode": mode, "top_k": args.step_k, "tail_draws": args.draws}
    settings = preset.cache.model_copy(update=chosen)
    writer = Writer(settings, args.teacher, args.data, preset.data.max_length, scratch / f"{mode}-state", device)
    writer.gather(scratch / mode)
    return scratch / mode


def steps(
    student_folder: Path,
    data: InMemoryDataset,
    cache: Path | None,
    whole: bool,
    preset: Preset,
    args: argparse.Namespace,
    device: torch.device,
    scratch: Path,
) -> tuple[list[float], float]:
    """Seconds of all steps of a run but the first, which warms up, and the last, which validates; and seconds of
    processor time of the whole run for each step."""
    settings = training(preset.distill, args, preset.cache.shard_size if whole else None)
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    student = place(load_model(student_folder), device, dtype)
    select_trainable(student)
    online = Online(load_teacher(args.teacher, student))
    source = online if cache is None else Cached(CacheReader(cache, {}, whole), device)
    task = DistillTask(student, data, source, Objective.of("prob+layer+ce", "kl", settings), (data, online))
    del online
    order = Order(np.arange(len(data)), settings.batch_size, 0, settings.shuffle_block)
    before = time.process_time()
    with tempfile.TemporaryDirectory(dir=scratch) as state:
        log = train(task, settings, order, seed=0, state=Path(state), title="step")
    work = (time.process_time() - before) / args.steps
    seconds = [float(row["seconds"]) for row in csv.DictReader(io.StringIO(log))]
    return np.diff(seconds)[1:-1].tolist(), work


def training(settings: Distillation, args: argparse.Namespace, block: int | None) -> Distillation:
    """The preset's settings for a few steps of equal kind."""
    changes = {"steps": args.steps, "warmup_steps": 0, "decay_steps": 0, "log_every": 1, "shuffle_block": block}
    changes |= {"validate_every": args.steps, "save_every": args.steps, "validation_rows": 1}
    if args.micro_batch:
        changes["micro_batch_size"] = args.micro_batch
    return Distillation.model_validate(settings.model_dump() | changes)


@one_line
def main(argv: list[str] | None = None) -> None:
    """Measure the accuracy of top-k caches and the time of a step with each kind of cache."""
    args = parse(argv)
    preset = preset_of(args)
    device = pick_training_device(args.device)
    origin = provenance.describe(vars(args), data=args.data, teacher=args.teacher, device=str(device))
    data = load_split(args.data, load_processor(args.teacher), preset.data.max_length).vary()
    args.rows = min(args.rows or len(data), len(data))
    setting = {
        "preset": args.preset,
        "command": shlex.join(["python", "benchmarks/cache.py", *(sys.argv[1:] if argv is None else argv)]),
        "rows": args.rows,
        "max_length": preset.data.max_length,
        "batch": preset.distill.batch_size,
        "micro_batch": args.micro_batch or preset.distill.micro_batch_size,
        "precision": preset.distill.precision,
        "steps": args.steps,
    }
    fixed = setting | {name: origin[name] for name in ORIGIN}
    rows = kept(args.out, args.preset)
    measured = [accuracy(load_model(args.teacher).to(device), args.students, data, args)]
    if args.repeats:
        measured.append(times(preset, args, device))
    for found in itertools.chain(*measured):
        rows.append(dict.fromkeys(MEASURED, "") | found | fixed)
        write(rows, args.out)
    print(args.out.read_text(encoding="utf-8"))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: a number that is too small, or a student without a name.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--preset", required=True, help="whose max_length, distill and cache settings to use")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--students", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True, help="folder of the split")
    parser.add_argument("--ks", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--rows", type=int, help="conversations for the accuracy; default: all")
    parser.add_argument(
        "--draws", type=int, default=Cache.model_fields["tail_draws"].default, help="tokens drawn from the tail"
    )
    parser.add_argument("--step-k", type=int, default=64, help="k of the cache whose steps are timed")
    parser.add_argument("--steps", type=int, default=24, help="of a timed run; the first and last do not count")
    parser.add_argument("--micro-batch", type=int, help="default: the preset's")
    parser.add_argument("--repeats", type=int, default=5, help="of the timed runs; 0: accuracy alone")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=MODES, help="of caches whose steps are timed beside online"
    )
    parser.add_argument("--scratch", type=Path, help="folder for the caches; default: the system's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/cache.csv"))
    args = parser.parse_args(argv)
    for name, least in (("steps", 3), ("repeats", 0), ("step_k", 1), ("draws", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')}: must be at least {least}")
    if min(args.ks) < 1:
        raise UserError("--ks: must be at least 1")
    pairs = [text.partition("=") for text in args.students]
    if wrong := [name for name, sign, folder in pairs if not (name and sign and folder)]:
        raise UserError(f"--students: {wrong[0]!r} is not NAME=FOLDER")
    args.students = {name: Path(folder) for name, _, folder in pairs}
    return args


def preset_of(args: argparse.Namespace) -> Preset:
    """The preset asked for.

    Raises:
        UserError: there is none of this name, or it trains no students.
    """
    presets = read_config(args.params).presets
    trained = [name for name, preset in presets.items() if preset.trains]
    if args.preset not in trained:
        raise UserError(f"--preset: {args.preset!r} is unknown or trains nothing; allowed: {', '.join(trained)}")
    return presets[args.preset]


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """All rows so far, so that what was measured is there if a later part fails."""
    write_text(out, csv_text((*MEASURED, *SETTING, *ORIGIN), rows))


if __name__ == "__main__":
    raise SystemExit(main())
