"""Teacher and student on one set of frozen weights.

The student is the teacher with mixers in place of some attention layers. All else is frozen and the teacher's, so
the teacher is built around the student's own tensors: what it has besides them is the attention of the replaced
layers and its own connector, which the student's training moves away from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.activations import ACT2FN, NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from matvlm.errors import UserError
from matvlm.models.folder import check_folder, read_config, stored_tensors
from matvlm.models.llava import new_model

SCAN = ("A_log", "dt_bias", "D")
"""A mixer's decays, step sizes and skip, which stay in float32: their steps are smaller than bfloat16 resolves."""


def place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a model to ``device``, its weights as ``dtype`` but for those of `SCAN`, one by one; returns it, with
    `fuse_operations` done."""
    for name, weight in model.named_parameters():
        kept = torch.float32 if name.rpartition(".")[2] in SCAN else dtype
        weight.data = weight.data.to(device, kept)
    fuse_operations(model)
    return model.to(device)  # buffers, in their own type


def fuse_operations(model: nn.Module) -> None:
    """What the library computes by many operations, most of which keep what they read for the backward pass, torch
    has as one of the same formula: Phi-2's ``gelu_new``, and the RMSNorm of Llama, whose weight stays the same
    tensor. In bfloat16 the latter rounds once and not twice."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"])
            elif isinstance(child, LlamaRMSNorm):
                with torch.device("meta"):
                    norm = nn.RMSNorm(len(child.weight), child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)


def load_teacher(folder: Path, student: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The teacher in ``folder`` on the student's frozen tensors; see `teacher_of`.

    Raises:
        UserError: the folder is not whole, or not of the teacher that the student was made of.
    """
    check_folder(folder)
    teacher = _blank(read_config(folder))
    return _fill(teacher, student, stored_tensors(folder, teacher), str(folder))


def teacher_of(
    student: LlavaForConditionalGeneration, config: LlavaConfig, tensors: Iterable[tuple[str, Tensor]]
) -> LlavaForConditionalGeneration:
    """A teacher in evaluation mode whose frozen parameters *are* the student's.

    Args:
        student: on its device and in its type, trainable part selected.
        config: of the teacher. tensors: the teacher's by name, one at a time; those that the student has too are
            compared and not kept.

    Raises:
        UserError: a tensor that is frozen in the student is not the teacher's, or the teacher lacks one.
    """
    return _fill(_blank(config), student, tensors, "teacher")


def _blank(config: LlavaConfig) -> LlavaForConditionalGeneration:
    with torch.device("meta"):
        model = new_model(config)
    fuse_operations(model)
    return model


def _fill(
    teacher: LlavaForConditionalGeneration,
    student: LlavaForConditionalGeneration,
    tensors: Iterable[tuple[str, Tensor]],
    title: str,
) -> LlavaForConditionalGeneration:
    shared = _shared(student)
    missing = {name for name, _ in teacher.named_parameters(remove_duplicate=False)}
    for name in missing & shared.keys():
        _put(teacher, name, shared[name])
    given = set()
    for name, tensor in tensors:
        if name not in missing:
            raise UserError(f"{title}: {name} is no tensor of the model that its config describes")
        given.add(name)
        held = shared.get(name)
        if held is None:
            own = tensor.to(student.device, student.dtype, copy=True)
            _put(teacher, name, nn.Parameter(own, requires_grad=False))
        elif held.shape != tensor.shape or not torch.equal(held, tensor.to(held)):
            raise UserError(
                f"{title}: {name} is not the student's, which is frozen and must be the teacher's; "
                "make the student from this teacher (init_hybrid)"
            )
    if lacking := sorted(missing - given - shared.keys()):  # a tied head is not stored
        raise UserError(f"{title}: lacks {', '.join(lacking[:5])}")
    buffers = dict(student.named_buffers())
    for name, _ in teacher.named_buffers():
        module, _, leaf = name.rpartition(".")
        teacher.get_submodule(module).register_buffer(leaf, buffers[name], persistent=False)
    return teacher.eval()


def _shared(student: LlavaForConditionalGeneration) -> dict[str, nn.Parameter]:
    """The student's tensors that are the teacher's: all frozen ones, but norm and MLP of the layers replaced where
    those were made random, as `release-random` has it."""
    text = student.config.text_config
    random = text.mamba_layers if text.mamba_init == "release-random" else []
    apart = tuple(f"model.language_model.layers.{index}." for index in random)
    weights = student.named_parameters(remove_duplicate=False)
    return {name: w for name, w in weights if not w.requires_grad and not name.startswith(apart)}


def _put(model: nn.Module, name: str, weight: nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, weight)
