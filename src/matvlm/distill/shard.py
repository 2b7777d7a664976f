"""Frozen weights shared out among the processes of a run, for models that do not fit one GPU.

By FSDP2, layer by layer: each process holds its part of a layer's frozen weights, and a layer is whole in all of
them while it is computed, in the forward pass and again in the backward pass. What is trained, the embeddings, the
head and norms beside mixers are whole in every process, as ever; gradients are added up by the training loop.

Teacher and student run on one set of frozen weights here too. FSDP2 manages the weights of modules, so what the
two share must be one module, not two with the same tensors (`share_modules`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlavaForConditionalGeneration

from matvlm.config import Distillation
from matvlm.distill.trunk import place
from matvlm.errors import UserError
from matvlm.models.folder import load_checked


def check_sharding(settings: Distillation, processes: int) -> None:
    """Whether so many processes can share the frozen weights out.

    Raises:
        UserError: there is one, or they would not all do as many micro-batches: every process takes part in every
            pass of the others.
    """
    if processes < 2:
        raise UserError(
            "distill.shard_frozen: true shares the frozen weights out among several processes, and this run has "
            "one; set gpus.distill above 1 (or start it by torchrun), or shard_frozen to false"
        )
    if settings.batch_size % (processes * settings.micro_batch_size):
        raise UserError(
            f"distill.shard_frozen: batch_size {settings.batch_size} is not a multiple of {processes} processes "
            f"times micro_batch_size {settings.micro_batch_size}, so that they would not do as many passes each"
        )


def shard_frozen(
    student: LlavaForConditionalGeneration, teacher: LlavaForConditionalGeneration, device: torch.device
) -> None:
    """Share the frozen layers of both models out among all processes, and move both to ``device``.

    Args:
        student: on the CPU, trainable part selected. teacher: on its tensors, as `matvlm.distill.trunk` makes it.
            At no time is more than a layer of them whole on ``device`` before it is shared out.
    """
    # Of outputs that are views; the layers here change none in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    share_modules(teacher, student)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in list(_frozen_units(student, teacher)):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for model in (student, teacher):
        model.to(device)


def share_modules(teacher: nn.Module, student: nn.Module) -> None:
    """Give ``teacher`` the student's own modules wherever all their parameters are the same tensors."""
    for name, child in list(teacher.named_children()):
        other = getattr(student, name, None)
        if other is None:
            continue
        mine, theirs = (dict(module.named_parameters(remove_duplicate=False)) for module in (child, other))
        if mine and mine.keys() == theirs.keys() and all(mine[key] is theirs[key] for key in mine):
            setattr(teacher, name, other)
        else:
            share_modules(child, other)


def frozen_bytes(*models: nn.Module) -> tuple[int, int]:
    """Bytes of the frozen parameters of some models, each counted once: those that this process holds, and all."""
    frozen = {id(w): w for model in models for w in model.parameters() if not w.requires_grad}
    held = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in frozen.values()]
    return sum(part.nbytes for part in held), sum(w.numel() * w.element_size() for w in frozen.values())


def whole(
    folder: Path, student: LlavaForConditionalGeneration, dtype: torch.dtype
) -> LlavaForConditionalGeneration:
    """The trained student as one model on the CPU; its frozen weights are those of ``folder``, its beginning."""
    model = place(load_checked(folder), torch.device("cpu"), dtype)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if weight.requires_grad:
                weights[name].copy_(weight)
    return model


def _frozen_units(
    student: LlavaForConditionalGeneration, teacher: LlavaForConditionalGeneration
) -> Iterator[nn.Module]:
    """Modules whose weights are shared out, each by itself: layers that are frozen, and the frozen parts of those
    with a mixer. Norms beside a mixer are small, and are called in passes of their own."""
    for module in student.model.vision_tower.modules():
        if isinstance(module, nn.ModuleList):
            yield from module
    seen: set[nn.Module] = set()
    shared = set(student.model.language_model.layers)
    for model in (student, teacher):
        for layer in model.model.language_model.layers:
            apart = hasattr(layer, "mamba") or layer not in shared
            parts = [getattr(layer, name, None) for name in ("self_attn", "mlp")] if apart else [layer]
            for part in parts:
                if part is not None and part not in seen:
                    seen.add(part)
                    yield part
