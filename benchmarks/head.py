"""L_prob through the head, forward and backward: ours beside liger-kernel's and beside all logits at once.

    python benchmarks/head.py                     # small, on any machine
    python benchmarks/head.py --paper-size        # a micro-batch of 8 at Phi-2's size, on a GPU
    pip install --no-deps liger-kernel==0.8.5     # the peer, which wants a GPU; without it its rows are left out

KL(teacher || student) of last hidden states (positions, width) of both models through one frozen head without
bias, and its gradient of the student's. `ours` is `matvlm.distill.head` with chunks of --chunk positions,
`compiled` the same with the divergence compiled, as `distill.compile` has it, `liger` is `LigerFusedLinearJSD`,
beta being 0, that KL, and `whole` holds the logits of all positions in float32. The kinds take turns in each
repeat. Memory is the allocator's peak beyond what was there before; on a CPU it is empty.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from matvlm import provenance
from matvlm.config import Distillation
from matvlm.distill.head import head_sums
from matvlm.distill.losses import prob_divergence
from matvlm.errors import UserError, one_line
from matvlm.files import csv_text, write_text
from matvlm.training.device import pick_training_device

SIZES = {False: (300, 64, 1000), True: (8 * 1428, 2560, 51200)}
"""Positions, width and vocabulary: small, and at the paper's size."""
COLUMNS = (
    *("kind", "repeat", "ms", "extra_memory_bytes", "ratio_to_ours", "kl", "gradient_norm"),
    *("positions", "width", "vocabulary", "chunk", "dtype"),
    *("commit", "dirty", "torch", "device"),
)
Loss = Callable[[Tensor, Tensor, nn.Linear], Tensor]


def ours(divergence: Callable, chunk: int, student: Tensor, teacher: Tensor, head: nn.Linear) -> Tensor:
    """Mean over positions of the KL, by `matvlm.distill.head`."""

    def value(logits: Tensor, part: slice) -> Tensor:
        with torch.no_grad():
            given = head(teacher[part])
        return divergence(logits, given, "kl")

    return head_sums(student, head, chunk, value)[0] / len(student)


def whole(student: Tensor, teacher: Tensor, head: nn.Linear) -> Tensor:
    """The same from the logits of all positions."""
    with torch.no_grad():
        given = head(teacher).float()
    return prob_divergence(head(student).float(), given, "kl").mean()


def liger(student: Tensor, teacher: Tensor, head: nn.Linear) -> Tensor:
    """The same by liger-kernel, which chunks by a rule of its own."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    return LigerFusedLinearJSD(jsd_beta=0.0)(student, head.weight, teacher, head.weight, None)


def kinds(device: torch.device, chunk: int) -> dict[str, Loss]:
    """What is measured here: liger-kernel only where it is installed and has a GPU."""
    found: dict[str, Loss] = {"ours": partial(ours, prob_divergence, chunk)}
    if device.type == "cuda":
        found["compiled"] = partial(ours, torch.compile(prob_divergence), chunk)
        if find_spec("liger_kernel"):
            found["liger"] = liger
        else:
            print("liger-kernel is not installed; its rows are left out", file=sys.stderr)
    return found | {"whole": whole}


def measure(loss: Loss, student: Tensor, teacher: Tensor, head: nn.Linear) -> dict[str, float]:
    """Time, memory and values of one forward and backward pass; no figures where the memory runs out."""
    cuda = student.is_cuda
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    try:
        value = loss(student, teacher, head)
        (gradient,) = torch.autograd.grad(value, student)
    except torch.OutOfMemoryError:
        return {}
    if cuda:
        torch.cuda.synchronize()
    found = {"ms": round(1000 * (time.perf_counter() - start), 3)}
    found |= {"kl": float(value.detach()), "gradient_norm": float(gradient.float().norm())}
    return found | ({"extra_memory_bytes": torch.cuda.max_memory_allocated() - before} if cuda else {})


@one_line
def main(argv: list[str] | None = None) -> None:
    """Measure all kinds in turn and write one row for each repeat."""
    args = parse(argv)
    device = pick_training_device(args.device)
    positions, width, vocabulary = SIZES[args.paper_size]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    make = partial(torch.randn, device=device, dtype=dtype)
    head = nn.Linear(width, vocabulary, bias=False, device=device, dtype=dtype).requires_grad_(False)
    teacher = make(positions, width)
    student = (teacher + 0.5 * make(positions, width)).requires_grad_()
    origin = provenance.describe(vars(args), device=str(device))
    setting = {"positions": positions, "width": width, "vocabulary": vocabulary, "chunk": args.chunk}
    setting |= {"dtype": str(dtype).removeprefix("torch.")}
    measured = kinds(device, args.chunk)
    for loss in measured.values():
        measure(loss, student, teacher, head)  # kernels are compiled and tuned
    rows = []
    for repeat in range(args.repeats):
        found = {kind: measure(loss, student, teacher, head) for kind, loss in measured.items()}
        for kind, figures in found.items():
            ratio = round(figures["ms"] / found["ours"]["ms"], 4) if figures else ""
            row = {"kind": kind, "repeat": repeat, "ratio_to_ours": ratio, **figures, **setting}
            rows.append(dict.fromkeys(COLUMNS, "") | row | {name: origin[name] for name in COLUMNS[-4:]})
    write_text(args.out, csv_text(COLUMNS, rows))
    for kind in measured:
        ratios = [row["ratio_to_ours"] for row in rows if row["kind"] == kind and row["ms"] != ""]
        print(
            f"{kind}: " + (f"{statistics.median(ratios):.2f} of the time of ours" if ratios else "out of memory")
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: a number below 1.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--paper-size", action="store_true")
    parser.add_argument("--chunk", type=int, default=Distillation.model_fields["head_chunk"].default)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/head.csv"))
    args = parser.parse_args(argv)
    for name in ("chunk", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: must be at least 1")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
