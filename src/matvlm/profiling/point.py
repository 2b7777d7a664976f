"""One measurement of one point, in a process that has done nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from matvlm import config
from matvlm.errors import UserError
from matvlm.files import write_json
from matvlm.generation.fused import unsupported
from matvlm.models.folder import load_model
from matvlm.models.initialise import build_student, student_config
from matvlm.models.llava import new_model
from matvlm.profiling.energy import energy_j
from matvlm.profiling.generated import plain_generate, time_generate, time_generated
from matvlm.profiling.measure import (
    Fused,
    Inputs,
    Plain,
    Runtime,
    check_points,
    make_inputs,
    measure_memory,
    time_context,
    time_each,
    time_prompt,
    time_steps,
)
from matvlm.profiling.points import GENERATE, PAPER, Point
from matvlm.profiling.roofline import copy_bandwidth, predict_memory, step_bytes
from matvlm.profiling.state import Row
from matvlm.training.device import pick_device

ENERGY_S = 1.0
"""Seconds of decoding that its energy is averaged over, at least."""


@dataclass(frozen=True)
class Job:
    """What one process measures.

    ``teacher``: its folder, or ``architecture`` of one with random weights. ``layout``: of a hybrid of it,
    untrained, or none for the teacher: what a step costs does not depend on what the weights hold. ``runtime``: by
    name, or empty for the fastest that all models share. ``first``: measure also what repeats need not.
    """

    settings: config.Profile
    teacher: Path | None
    architecture: config.RandomTeacher | None
    layout: str | None
    protocol: str
    runtime: str
    point: Point
    device: str
    first: bool


@torch.no_grad()
def measure(job: Job) -> Row:
    """Figures of one measurement, without those that memory did not suffice for; `runtime`, and a `note` if it
    cannot run at all.

    Raises:
        UserError: the teacher, the layout or a point of the settings cannot be used.
    """
    torch.set_num_threads(job.settings.threads)
    device = pick_device(job.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and kernels go to the current one
    row: Row = {"runtime": job.runtime}
    try:
        row["copy_bandwidth_bytes_per_s"] = copy_bandwidth(device)
        model = _build(job, device)
        check_points(model, job.settings)
        longest = model.config.text_config.max_position_embeddings
        row["beyond_positions"] = job.point.context > longest
        make = _runtime(job, model)
        if isinstance(make, str):
            return {**row, "note": make}
        row["runtime"] = job.runtime or make.name
        row |= _predictions(job, model, row)
        row |= _times(job, make, model)
        if job.first:
            torch.cuda.empty_cache()
            row |= measure_memory(make, model, job.point)
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the words of the CPU allocator
            raise
    return row


def _build(job: Job, device: torch.device) -> LlavaForConditionalGeneration:
    dtype = getattr(torch, job.settings.dtype)
    if job.architecture is None:
        model = load_model(job.teacher, dtype=dtype)
        if job.layout is not None:
            model = build_student(model, job.layout, "attention", seed=0)
        return model.to(device)
    from matvlm.teacher.architecture import llava_config

    described = llava_config(job.architecture)
    if job.layout is not None:
        described = student_config(described, job.layout, "random")
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return new_model(described).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _runtime(job: Job, model: LlavaForConditionalGeneration) -> type[Runtime] | str:
    if job.runtime.startswith(GENERATE):
        return plain_generate(model, job.runtime.removeprefix(GENERATE))
    problem = unsupported(model, job.point.batch)
    if job.runtime == Fused.name and problem:
        return f"fused: {problem}"
    return Plain if problem else Fused


def _predictions(job: Job, model: LlavaForConditionalGeneration, row: Row) -> Row:
    found: Row = {"predicted_memory_bytes": predict_memory(model, job.point, str(row["runtime"]))}
    if bandwidth := row["copy_bandwidth_bytes_per_s"]:
        found["bandwidth_limit_tokens_per_s"] = job.point.batch * bandwidth / step_bytes(model, job.point)
    return found


def _times(job: Job, make: type[Runtime], model: LlavaForConditionalGeneration) -> Row:
    settings, point = job.settings, job.point
    runtime, inputs = make(model, point), make_inputs(model, point)
    row: Row = {"prefill_s": time_prompt(runtime, inputs)}
    if job.protocol == PAPER:
        first, step = time_generate(runtime, inputs, settings)
        return row | {"first_decode_tokens_per_s": point.batch / first, "decode_tokens_per_s": point.batch / step}
    smallest = point.batch == min(settings.batch_sizes)
    if model.device.type == "cuda" and smallest:
        row["context_prefill_s"] = time_context(runtime, inputs)
    step = time_steps(runtime, inputs, settings)
    row["decode_tokens_per_s"] = point.batch / step
    if job.first:
        row["energy_j_per_token"] = _energy(runtime, inputs, settings, step)
        if smallest and point.generated_tokens in settings.generated_check:
            row["generated_decode_tokens_per_s"] = point.batch / time_generated(runtime, inputs, settings)
    return row


def _energy(runtime: Runtime, inputs: Inputs, settings: config.Profile, step: float) -> float | None:
    """Joules a token, over steps at the end of the context again and again."""
    device, count = runtime.model.device, settings.decode_steps
    if energy_j(device) is None:
        return None
    rounds = int(ENERGY_S / (step * count)) + 1
    time_steps(runtime, inputs, settings)
    start = energy_j(device)
    for _ in range(rounds):
        for layer in runtime.cache.layers:
            if hasattr(layer, "length"):
                layer.length -= count
        time_each(runtime.step, count, device)
    return (energy_j(device) - start) / (rounds * count * len(inputs.prompt))


def run(job: Job, out: Path) -> None:
    """Write what `measure` finds to ``out`` as JSON: `row`, or `error` where a user's input is at fault."""
    try:
        write_json(out, {"row": measure(job)})
    except UserError as error:
        write_json(out, {"error": str(error)})
