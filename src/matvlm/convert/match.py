"""Which tensors a checkpoint must have, by a model on the meta device, and what is wrong with its own."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaConfig, SiglipVisionConfig, SiglipVisionModel

from matvlm.convert import names
from matvlm.convert.checkpoint import Checkpoint, listed
from matvlm.convert.release import CONFIG, MAMBA_CONFIG
from matvlm.errors import UserError
from matvlm.models.llava import new_model

Shapes = dict[str, tuple[int, ...]]


def our_shapes(config: LlavaConfig, path: Path) -> Shapes:
    """Names on disk and shapes of all tensors of our model with this configuration, read from ``path``.

    Raises:
        UserError: no model can be built of it.
    """
    try:
        with torch.device("meta"):
            state = new_model(config).state_dict()
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: describes no model: {' '.join(str(error).split())}") from None
    shapes = {names.on_disk(name): tuple(tensor.shape) for name, tensor in state.items()}
    if config.tie_word_embeddings:
        del shapes[names.HEAD_WEIGHT]
    return shapes


def release_shapes(config: LlavaConfig, path: Path) -> Shapes:
    """As `our_shapes`, in the release's names; its Phi always has a bias in the head."""
    shapes = {names.in_release(name): shape for name, shape in our_shapes(config, path).items()}
    if config.text_config.model_type in ("phi", "hybrid_phi"):
        shapes[names.HEAD_BIAS] = (config.text_config.vocab_size,)
    return shapes


def head_shapes(vision: SiglipVisionConfig) -> Shapes:
    """Names and shapes of the release's pooling head."""
    with torch.device("meta"):
        one_layer = SiglipVisionConfig(**vision.to_dict() | {"vision_use_head": True, "num_hidden_layers": 1})
        head = SiglipVisionModel(one_layer).head.state_dict()
    prefix = names.POOLING_HEAD[0].removesuffix("probe")
    return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in head.items()}


def check_layout(config: LlavaConfig, source: Checkpoint) -> None:
    """Compare the depths and the layout of a release's configuration with its tensors, which says more than a
    list of the tensors that lack.

    Raises:
        UserError: they disagree.
    """
    folder, text = source.folder, config.text_config
    layers = names.text_layers(list(source.entries))
    depths = {
        "text_config": (text.num_hidden_layers, layers.keys()),
        "vision_config": (config.vision_config.num_hidden_layers, names.vision_layers(list(source.entries))),
    }
    for part, (depth, found) in depths.items():
        if found and max(found) + 1 != depth:
            raise UserError(
                f"{folder / CONFIG}: {part}.num_hidden_layers: is {depth}, but there are tensors of "
                f"{max(found) + 1} layers"
            )
    replaced = getattr(text, "mamba_layers", [])
    mixed = {index for index, modules in layers.items() if "mamba" in modules}
    attending = {index for index, modules in layers.items() if "self_attn" in modules}
    if mixed and not replaced:
        raise UserError(
            f"{folder / MAMBA_CONFIG}: missing, but layers {_numbers(mixed)} have tensors of a Mamba-2 mixer"
        )
    if wrong := (mixed - set(replaced)) | (attending & set(replaced)):
        raise UserError(
            f"{folder / MAMBA_CONFIG}: attn_layers: disagrees with the tensors about layers {_numbers(wrong)}"
        )


def check_tensors(source: Checkpoint, wanted: Shapes, known: set[str]) -> None:
    """Compare a checkpoint's tensors with those wanted.

    Args:
        known: names of further tensors that it may have.

    Raises:
        UserError: some are missing, not known or misshapen; all kinds in one line.
    """
    entries = source.entries
    missing = sorted(wanted.keys() - entries.keys())
    extra = sorted(entries.keys() - wanted.keys() - known)
    misshapen = [
        f"{name} {list(entries[name].shape)}, not {list(shape)}"
        for name, shape in sorted(wanted.items())
        if name in entries and entries[name].shape != shape
    ]
    found = {"missing": missing, "not known": extra, "misshapen": misshapen}
    if any(found.values()):
        parts = (f"{len(those)} tensors {kind}: {listed(those)}" for kind, those in found.items() if those)
        raise UserError(f"{source.folder}: {'; '.join(parts)}")


def find_head(source: Checkpoint, vision: SiglipVisionConfig) -> list[str]:
    """Names of the tensors of a release's pooling head; none if it has no part of one.

    Raises:
        UserError: a part of it is missing or misshapen.
    """
    found = [name for name in names.POOLING_HEAD if name in source.entries]
    if found:
        check_tensors(source, head_shapes(vision), set(source.entries))
    return found


def _numbers(indices: set[int]) -> str:
    return ", ".join(map(str, sorted(indices)))
