"""The distillation step, ours beside the release's (`release_step.py`): tokens a second, memory and MFU.

    python benchmarks/distill_step.py                                        # tiny models, on any machine
    python benchmarks/distill_step.py --paper-size --micro-batches 1 2 4 8   # Phi-2 and SigLIP so400m, on a GPU
    … --gpus 1 2                                                             # ours on one GPU and on two

Weights are random and bfloat16, with float32 copies of the trained part; 25 % of the layers are replaced, and all
three losses are on. A step is an optimizer step over --batch sequences of --sequence tokens without padding, half
of them an image. Each variant, micro-batch, number of GPUs and repeat is a run of its own; its figure is the
median of --steps steps of the training loop after a warm-up, checkpoints and validation aside. Several GPUs share
the batch, a process each (processes of the CPU with --device cpu); memory is that of the process with most. The
release's step is measured on one alone. Out of memory is a row with empty figures.

MFU counts what must be computed, by the formulas of `matvlm.plan` (docs/engine.md), the same for both variants:
no gradients of frozen weights, nothing twice, and of attention the half below the diagonal. On a GPU whose peak is
not in `PEAKS`, and on a CPU, it is empty. Memory is the allocator's peak on a GPU, the process's on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from release_step import ReleaseStep
from timed_steps import Enough, Timed
from transformers import LlavaConfig, PhiConfig, SiglipVisionConfig

from matvlm import plan, provenance
from matvlm.config import Distillation
from matvlm.distill.targets import Online
from matvlm.distill.task import DistillTask, Objective, compile_layers, select_trainable
from matvlm.distill.trunk import place, teacher_of
from matvlm.errors import UserError, one_line
from matvlm.files import csv_text, write_text
from matvlm.models.initialise import build_student, student_config
from matvlm.models.llava import new_model
from matvlm.training.device import pick_training_device
from matvlm.training.loop import train
from matvlm.training.ranks import count, leave, open_group, together

VARIANTS = ("ours", "release")
LOSS, LAYOUT, RATE = "prob+layer+ce", "even-25", 2e-4
START = 8
"""Tokens of text before the image."""
PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by the vendor's data sheets; the first name that a device's contains."""
MEASURED = ("variant", "gpus", "micro_batch", "repeat", "tokens_per_s", "peak_memory_bytes", "mfu")
SETTING = ("architecture", "layout", "batch", "sequence", "gradient_checkpointing", "compile", "steps")
ORIGIN = ("commit", "dirty", "torch", "transformers", "mamba_ssm", "causal_conv1d", "device", "kernel_path")
TINY = (
    {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4},
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
)
PAPER = (
    {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32},
    {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
)


class Synthetic:
    """Random conversations with `matvlm.data.dataset.InMemoryDataset`'s `batch`: some text, an image, more text;
    the last seventh of the sequence is an answer."""

    def __init__(self, config: LlavaConfig, rows: int, length: int, device: torch.device) -> None:
        draw = torch.Generator().manual_seed(0)
        image = config.image_seq_length
        ids = torch.randint(
            config.image_token_id + 1, config.text_config.vocab_size, (rows, length), generator=draw
        )
        ids[:, START : START + image] = config.image_token_id
        self.ids = ids.to(device)
        self.labels = torch.full_like(self.ids, -100)
        self.labels[:, -(length // 7) :] = self.ids[:, -(length // 7) :]
        size = config.vision_config.image_size
        self.pixels = torch.randn(rows, 3, size, size, generator=draw).to(device)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray, device: torch.device) -> dict[str, Any]:
        """Rows of the data, which are on ``device`` already."""
        index = torch.as_tensor(rows, device=device)
        ids = self.ids[index]
        found = {"input_ids": ids, "labels": self.labels[index], "pixel_values": self.pixels[index]}
        return {**found, "attention_mask": torch.ones_like(ids), "tokens": ids.numel()}


def architecture(paper_size: bool) -> LlavaConfig:
    """The teacher's configuration."""
    text, vision = PAPER if paper_size else TINY
    size, patch = (384, 14) if paper_size else (32, 8)
    return LlavaConfig(
        text_config=PhiConfig(
            **text,
            vocab_size=51200 if paper_size else 640,
            partial_rotary_factor=0.4,
            resid_pdrop=0.1,  # Phi-2's
            hidden_act="gelu_new",
        ),
        vision_config=SiglipVisionConfig(**vision, image_size=size, patch_size=patch, vision_use_head=False),
        image_token_id=3,
        image_seq_length=(size // patch) ** 2 - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


def make(
    variant: str, micro_batch: int, args: argparse.Namespace, device: torch.device
) -> DistillTask | ReleaseStep:
    """A variant's task, its models on ``device``."""
    config = architecture(args.paper_size)
    data = Synthetic(config, args.batch, args.sequence, device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            teacher = new_model(config)
            student = build_student(teacher, LAYOUT, "attention", 0)
    finally:
        torch.set_default_dtype(before)
    select_trainable(student)
    if variant == "release":
        return ReleaseStep(teacher, student, data, args.gradient_checkpointing)
    settings = settings_of(micro_batch, args)
    place(student, device, torch.bfloat16)
    view = teacher_of(student, config, teacher.named_parameters())
    if args.compile:
        compile_layers(view.model.language_model)
    online = Online(view)
    return DistillTask(student, data, online, Objective.of(LOSS, "kl", settings), (data, online))


def settings_of(micro_batch: int, args: argparse.Namespace) -> Distillation:
    """What the step is measured with; the training is ended before its last step, which would be saved."""
    return Distillation(
        steps=args.steps + 2,
        batch_size=args.batch,
        micro_batch_size=micro_batch,
        learning_rate=RATE,
        warmup_steps=0,
        decay_steps=0,
        max_grad_norm=0.1,
        validation_rows=1,
        validate_every=args.steps + 2,
        save_every=args.steps + 2,
        precision="bfloat16",
        gradient_checkpointing=args.gradient_checkpointing,
        compile=args.compile,
    )


def measure(variant: str, micro_batch: int, args: argparse.Namespace) -> dict[str, float]:
    """Figures of a variant, in this process and those that share its batch; none where memory runs out."""
    device = pick_training_device(args.device)
    open_group(on_cpu=device.type == "cpu")
    try:
        task = make(variant, micro_batch, args, device)
        if device.type == "cuda":
            gc.collect()  # of what made the models
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        seconds = times(task, micro_batch, args)
    except (torch.OutOfMemoryError, UserError) as error:
        # The loop says it in words.
        if not isinstance(error, torch.OutOfMemoryError) and not isinstance(
            error.__context__, torch.OutOfMemoryError
        ):
            raise
        return {}
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peaks = PartialState().num_processes * [peak]
    if len(peaks) > 1:
        torch.distributed.all_gather_object(peaks, peak)
    rate = args.batch * args.sequence / statistics.median(seconds)
    found = {"tokens_per_s": round(rate, 1), "peak_memory_bytes": max(peaks)}
    if limit := peak_flops(provenance.device_name(str(device))):
        found["mfu"] = round(rate * flops_per_token(args) / limit / len(peaks), 4)
    return found


def times(task: DistillTask | ReleaseStep, micro_batch: int, args: argparse.Namespace) -> list[float]:
    """Seconds of each step as the training loop takes it, after one of a single micro-batch in each process."""
    rows, first = np.arange(args.batch), micro_batch * PartialState().num_processes
    timed = Timed(task, args.steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        train(
            timed,
            settings_of(micro_batch, args),
            lambda step: rows if step else rows[:first],
            seed=0,
            state=Path(folder),
            title="distill_step",
        )
    return [end - start for start, end in itertools.pairwise(timed.starts[1:])]


def flops_per_token(args: argparse.Namespace) -> float:
    """What must be computed of a sequence, for each of its tokens."""
    config, length = architecture(args.paper_size), args.sequence
    sizes = [plan.measure(part, length) for part in (config, student_config(config, LAYOUT, "attention"))]
    # Of attention, which is M without the mixers' S, only the half below the diagonal.
    teacher, student = (replace(size, M=size.M - (size.M - size.S) // 2) for size in sizes)
    flops = plan.distill_flops(student, LOSS, length, config.image_seq_length)
    return (flops + plan.online_flops(teacher, LOSS, length, config.image_seq_length, 1.0)) / length


def peak_flops(device: str) -> float | None:
    """A GPU's peak, or none if it is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


@one_line
def main(argv: list[str] | None = None) -> None:
    """Measure the variants and write one row for each measurement."""
    args = parse(argv)
    if args.one:
        together(measure_one)(args)
        return
    if args.variants == ["release"] and 1 not in args.gpus:
        raise UserError("--gpus: the release's step is measured on one GPU; add 1, or --variants ours")
    device = pick_training_device(args.device)
    if device.type == "cuda" and max(args.gpus) > (there := torch.cuda.device_count()):
        raise UserError(f"--gpus: {max(args.gpus)} is more than this machine has, {there}")
    origin = provenance.describe(vars(args), device=str(device))
    setting = {name: getattr(args, name, None) for name in SETTING}
    setting |= {"architecture": "paper" if args.paper_size else "tiny", "layout": LAYOUT}
    rows = []
    for repeat, size, gpus, variant in itertools.product(
        range(args.repeats), args.micro_batches, args.gpus, args.variants
    ):
        if variant == "release" and gpus > 1:
            continue
        words = list(sys.argv[1:] if argv is None else argv)
        if gpus == 1:  # all on one GPU, of which there may be several
            words += ["--device", str(device)]
        words += ["--one", variant, str(size), str(gpus)]
        found = dict.fromkeys(MEASURED, "") | start(words, gpus)
        found |= {"variant": variant, "gpus": gpus, "micro_batch": size, "repeat": repeat}
        setting["compile"] = args.compile and variant == "ours"
        rows.append(found | setting | {name: origin[name] for name in ORIGIN})
        print({name: found[name] for name in MEASURED}, file=sys.stderr)
        write(rows, args.out)
    summarise(rows)


def start(words: list[str], gpus: int) -> dict[str, float]:
    """Figures that so many processes of their own find, which share a batch.

    Raises:
        UserError: they failed for another reason than want of memory.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)] if gpus > 1 else []
    done = subprocess.run([sys.executable, *launcher, __file__, *words], stdout=subprocess.PIPE, text=True)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if said and not all(said):  # one that has no memory ends the others
        return {}
    if done.returncode or not said:
        variant, size, _ = words[-3:]
        raise UserError(f"{variant} at micro-batch {size} on {gpus} ended with status {done.returncode}")
    return said[-1]


def measure_one(args: argparse.Namespace) -> None:
    """Print the figures of one measurement as JSON, an empty object where memory runs out."""
    found = measure(args.one[0], int(args.one[1]), args)
    if not found or PartialState().is_main_process:
        print(json.dumps(found), flush=True)
    if not found and count() > 1:
        raise UserError("no memory for the step")
    leave()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: a micro-batch that does not divide the batch, or a sequence without room for text.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--paper-size", action="store_true")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batch", type=int, help="sequences of an optimizer step; default: 8, at paper size 64")
    parser.add_argument("--sequence", type=int, help="tokens of a sequence; default: 64, at paper size 1428")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true", help="compile our layers and divergence")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/distill_step.csv"))
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], help="ours on each of these numbers of GPUs")
    parser.add_argument("--one", nargs=3, metavar=("VARIANT", "MICRO_BATCH", "GPUS"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.batch = args.batch or (64 if args.paper_size else 8)
    args.sequence = args.sequence or (1428 if args.paper_size else 64)
    for name in ("batch", "sequence", "steps", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: must be at least 1")
    for size, gpus in itertools.product(args.micro_batches, args.gpus):
        if gpus < 1:
            raise UserError("--gpus: must be at least 1")
        if size < 1 or args.batch % (size * gpus):
            share = f"the share of {gpus} of --batch" if gpus > 1 else "--batch"
            raise UserError(f"--micro-batches: {size} does not divide {share} {args.batch}")
    image = architecture(args.paper_size).image_seq_length
    if args.sequence * 6 // 7 < image + START:
        raise UserError(f"--sequence: {args.sequence} has no room for an image of {image} tokens and an answer")
    return args


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """All rows so far, so that what was measured is there if a later process fails."""
    write_text(out, csv_text((*MEASURED, *SETTING, *ORIGIN), rows))


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print ours over the release's, and ours on several GPUs over one: at each micro-batch, and each at the one
    that is its fastest."""

    def median(key: tuple[str, int], size: int, name: str) -> float | None:
        found = [r[name] for r in rows if (r["variant"], r["gpus"], r["micro_batch"]) == (*key, size)]
        found = [value for value in found if value != ""]
        return statistics.median(found) if found else None

    ours = ("ours", 1)
    others = dict.fromkeys((row["variant"], row["gpus"]) for row in rows)
    others.pop(ours, None)
    sizes = list(dict.fromkeys(row["micro_batch"] for row in rows))
    for other in others:
        # The release's is what ours is compared with; one GPU is what several are.
        pair = (ours, other) if other[0] == "release" else (other, ours)
        title = "" if other[0] == "release" else f"{other[1]} GPUs over 1, "
        best: dict[tuple[str, int], float] = {}
        for size in sizes:
            speeds, peaks = ([median(key, size, name) for key in pair] for name in MEASURED[4:6])
            best |= {key: max(best.get(key, 0.0), s) for key, s in zip(pair, speeds, strict=True) if s}
            if all(speeds):
                speed, peak = speeds[0] / speeds[1], peaks[0] / peaks[1]
                print(
                    f"{title}micro-batch {size}: {speed:.2f} times the tokens a second, {peak:.0%} of the memory"
                )
        if len(best) == 2:
            print(f"{title}each at its best: {best[pair[0]] / best[pair[1]]:.2f} times the tokens a second")


if __name__ == "__main__":
    raise SystemExit(main())
