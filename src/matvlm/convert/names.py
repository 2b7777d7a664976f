"""Names of tensors: the release's, ours on disk, and what of the release's has no counterpart.

The release is a TinyLLaVA Factory checkpoint. Its modules, and so the first parts of its keys, are those of the
public sources (TinyLLaVA/TinyLLaVA_Factory `tinyllava/model/`, hustvl/MaTVLM `tinyllava/model/` and `mamba2/`)::

    language_model.model.…, language_model.lm_head.…      transformers' causal language model
    vision_tower._vision_tower.vision_model.…             transformers' SiglipVisionModel as of version 4
    connector._connector.0|2.{weight,bias}                nn.Sequential of Linear, GELU, Linear
    language_model.model.layers.N.mamba.…                 in place of `self_attn` in a replaced layer

A mixer's tensors are those of Mamba-2 (`in_proj`, `conv1d`, `dt_bias`, `A_log`, `D`, `norm`, `out_proj`), with
in_proj's rows in the order [z, x, B, C, dt] and biases of the projections where `is_bias` is set: our own names
and order, so nothing is permuted. The weights themselves could not be looked at. That they have these keys is
concluded from the code that saves them, `save_pretrained` of the whole model.

transformers 5 has no level `vision_model` in SigLIP, and its LLaVA calls the connector `multi_modal_projector`.
On disk it keeps the older names of the language model, which are the release's.
"""

from __future__ import annotations

import re

VISION, CONNECTOR = "vision_tower.", "multi_modal_projector."
HEAD_WEIGHT, HEAD_BIAS = "language_model.lm_head.weight", "language_model.lm_head.bias"
EMBEDDING = "language_model.model.embed_tokens.weight"

_DISK = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", VISION),
    ("model.multi_modal_projector.", CONNECTOR),
)
_RELEASE = (
    (VISION, "vision_tower._vision_tower.vision_model."),
    (f"{CONNECTOR}linear_1.", "connector._connector.0."),
    (f"{CONNECTOR}linear_2.", "connector._connector.2."),
)

POOLING_HEAD = tuple(
    f"vision_tower._vision_tower.vision_model.head.{name}"
    for name in (
        "probe",
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
        "layernorm.weight",
        "layernorm.bias",
        "mlp.fc1.weight",
        "mlp.fc1.bias",
        "mlp.fc2.weight",
        "mlp.fc2.bias",
    )
)
"""SigLIP's pooling head. It works on the last layer, and LLaVA reads the one before: no pass ever calls it."""

POSITION_IDS = "vision_tower._vision_tower.vision_model.embeddings.position_ids"
_INV_FREQ = re.compile(r"language_model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.(.+)")
_VISION_LAYER = re.compile(r"vision_tower\._vision_tower\.vision_model\.encoder\.layers\.(\d+)\..+")


def on_disk(name: str) -> str:
    """Name in our files of a tensor of a model's `state_dict`."""
    return _renamed(name, _DISK)


def in_release(name: str) -> str:
    """Name in the release of a tensor of our files."""
    return _renamed(name, _RELEASE)


def is_inv_freq(name: str) -> bool:
    """Whether a release's tensor is the buffer of rotary frequencies, which older versions saved."""
    return _INV_FREQ.fullmatch(name) is not None


def text_layers(names: list[str]) -> dict[int, set[str]]:
    """Modules and parameters directly below each decoder layer of a release, such as `mamba` and `mlp`."""
    layers: dict[int, set[str]] = {}
    for name in names:
        if (match := _LAYER.fullmatch(name)) and not is_inv_freq(name):
            layers.setdefault(int(match[1]), set()).add(match[2].partition(".")[0])
    return layers


def vision_layers(names: list[str]) -> set[int]:
    """Indices of the vision tower's layers in a release."""
    return {int(match[1]) for name in names if (match := _VISION_LAYER.fullmatch(name))}


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
