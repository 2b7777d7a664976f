"""Our configuration in the words of the release: its `config.json` and `mamba_config.json`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaConfig, PhiConfig, SiglipVisionConfig

from matvlm.convert.read import read_object
from matvlm.convert.release import (
    CONFIG,
    CONNECTOR_TYPE,
    MAMBA_CONFIG,
    MODEL_TYPE,
    SELECT,
    TEXT,
    architecture,
    read_release,
)
from matvlm.errors import UserError
from matvlm.models.folder import read_config
from matvlm.models.hybrid import ATTENTION
from matvlm.models.hybrid_phi import HybridPhiConfig

TEACHER, STUDENT = "TinyLlavaForConditionalGeneration", "HybridTinyLlavaForConditionalGeneration"
LANGUAGE_MODELS = {
    "phi": "microsoft/phi-2",
    "qwen2": "Qwen/Qwen2-0.5B",
    "llama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
}
"""`llm_model_name_or_path` where no checkpoint alike has one: the release finds its classes by this name."""
VISION_MODEL = "google/siglip-so400m-patch14-384"
IMAGE_INDEX, IGNORE_INDEX = -200, -100
"""Constants of TinyLLaVA Factory that its configurations repeat."""


def read_ours(folder: Path) -> LlavaConfig:
    """Configuration of a folder of ours that the release's layout has a place for.

    Raises:
        UserError: it is of another family, or of a kind that the release does not have.
    """
    path = folder / CONFIG
    config = read_config(folder)
    if family(config) not in TEXT:
        kind = config.text_config.model_type
        raise UserError(f"{path}: text_config.model_type: is {kind!r}; allowed: {', '.join(TEXT)}, hybrid_phi")
    if not isinstance(config.vision_config, SiglipVisionConfig):
        kind = config.vision_config.model_type
        raise UserError(f"{path}: vision_config.model_type: is {kind!r}; allowed: {SiglipVisionConfig.model_type}")
    if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
        raise UserError(f"{path}: connector: the release knows {CONNECTOR_TYPE} alone: gelu, with biases")
    if not isinstance(config.vision_feature_layer, int):
        raise UserError(f"{path}: vision_feature_layer: is a list; the release reads one layer")
    return config


def family(config: LlavaConfig) -> str:
    """Model type of the language model; of a hybrid, what it was made of."""
    return "phi" if isinstance(config.text_config, HybridPhiConfig) else config.text_config.model_type


def read_like(folder: Path, config: LlavaConfig) -> tuple[LlavaConfig, dict]:
    """Configuration and `config.json` of a release's checkpoint that is said to be like the model of ``config``.

    Raises:
        UserError: it is not: another architecture, other features of the image, or another vocabulary.
    """
    like, raw = read_release(folder)
    pairs = [("text_config.model_type", family(config), family(like))]
    pairs += [
        (key, getattr(config, key), getattr(like, key))
        for key in ("vision_feature_layer", "vision_feature_select_strategy", "tie_word_embeddings")
    ]
    if family(config) == family(like):
        for part, kind in (("text_config", TEXT[family(like)]), ("vision_config", SiglipVisionConfig)):
            ours, theirs = getattr(config, part), getattr(like, part)
            keys = sorted(architecture(kind) - {"vocab_size"})
            pairs += [(f"{part}.{key}", getattr(ours, key), getattr(theirs, key)) for key in keys]
    for key, ours, theirs in pairs:
        if ours != theirs:
            raise UserError(f"{folder / CONFIG}: {key}: means {theirs!r}, but the model to convert has {ours!r}")
    rows, others = config.text_config.vocab_size, like.text_config.vocab_size
    added_for_image = rows == others + 1 and config.image_token_id == others
    if rows != others and not added_for_image:
        raise UserError(
            f"{folder / CONFIG}: text_config.vocab_size: is {others}, but the model to convert has {rows}"
        )
    return like, raw


def write_config(config: LlavaConfig, base: dict, dtype: torch.dtype) -> dict:
    """`config.json` of the release.

    Args:
        base: that of a checkpoint like it, to take over; or empty.
    """
    if not base:
        name = LANGUAGE_MODELS[family(config)]
        base = {
            "llm_model_name_or_path": name,
            "tokenizer_name_or_path": name,
            "tokenizer_use_fast": True,
            "tokenizer_padding_side": "right",
            "vision_model_name_or_path": VISION_MODEL,
            "connector_type": CONNECTOR_TYPE,
            "hidden_size": config.text_config.hidden_size,
            "vision_hidden_size": config.vision_config.hidden_size,
            "vocab_size": config.text_config.vocab_size,
            "pad_token_id": config.text_config.pad_token_id,
            "ignore_index": IGNORE_INDEX,
            "image_token_index": IMAGE_INDEX,
            "image_aspect_ratio": "square",
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": {ours: theirs for theirs, ours in SELECT.items()}[
                config.vision_feature_select_strategy
            ],
            "text_config": _text(config),
            "vision_config": _vision(config.vision_config),
        }
    # A class to run from the folder is the source's own matter: that code does not travel.
    kept = {key: value for key, value in base.items() if key not in ("auto_map", "dtype")}
    return kept | {
        "model_type": MODEL_TYPE,
        "architectures": [STUDENT if isinstance(config.text_config, HybridPhiConfig) else TEACHER],
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def write_mamba_config(config: LlavaConfig, like: LlavaConfig | None, folder: Path | None) -> dict | None:
    """`mamba_config.json` of the release; none of a teacher.

    Args:
        like, folder: a checkpoint of the release. If it has this very layout, its file is taken over.
    """
    text = config.text_config
    if not isinstance(text, HybridPhiConfig):
        return None
    if like is not None and folder is not None and isinstance(like.text_config, HybridPhiConfig):
        keys = ("layer_types", "mamba_conv_kernel", "mamba_bias")
        if all(getattr(like.text_config, key) == getattr(text, key) for key in keys):
            return read_object(folder / MAMBA_CONFIG)
    head_dim = text.hidden_size // text.num_attention_heads
    ssm = {"expand": 1, "ngroups": text.num_attention_heads, "d_state": head_dim}
    if text.mamba_conv_kernel != 4:
        ssm["d_conv"] = text.mamba_conv_kernel
    return {
        "d_model": text.hidden_size,
        "ssm_cfg": ssm,
        "layer_norm_eps": text.layer_norm_eps,
        "vocab_size": None,
        "d_inner": text.hidden_size,
        "d_xb": text.num_key_value_heads * head_dim,
        "intermediate_size": text.intermediate_size,
        "hidden_act": text.hidden_act,
        "n_layer": text.num_hidden_layers,
        "attn_layers": [index for index, kind in enumerate(text.layer_types) if kind == ATTENTION],
        "resid_pdrop": text.resid_pdrop,
        "bidirectional": False,
        "is_bias": text.mamba_bias,
    }


def _text(config: LlavaConfig) -> dict:
    """`text_config` as version 4 of transformers writes it, with the rotary embedding's keys one by one."""
    text, kind = config.text_config, TEXT[family(config)]
    keys = architecture(kind) | {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
    made = {key: getattr(text, key) for key in keys - {"rope_parameters", "layer_types"}}
    rope = dict(text.rope_parameters)
    made["rope_theta"] = rope.pop("rope_theta")
    if kind is PhiConfig:
        made["partial_rotary_factor"] = rope["partial_rotary_factor"]
    rope.pop("partial_rotary_factor", None)
    made["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    return made | {"model_type": kind.model_type}


def _vision(vision: SiglipVisionConfig) -> dict:
    made = {key: getattr(vision, key) for key in architecture(SiglipVisionConfig)}
    return made | {"model_type": vision.model_type, "vision_use_head": False}
