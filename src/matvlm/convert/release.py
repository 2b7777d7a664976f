"""The release's `config.json` and `mamba_config.json`, read as our configuration.

What `config.json` holds is in TinyLLaVA Factory's `configuration_tinyllava.py`. What `mamba_config.json` holds is
in hustvl/MaTVLM, where `train_tinyllava_mamba2/train_hybrid.py` fills a `PhiMambaConfig`. One name is assumed: the
LayerNorm's epsilon is `layer_norm_eps` in the layers that read it and `rms_norm_eps` in an earlier class, so both
are read.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    LlamaConfig,
    LlavaConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from matvlm.convert.read import read_object
from matvlm.errors import UserError
from matvlm.models.hybrid import ATTENTION, MAMBA
from matvlm.models.hybrid_phi import HybridPhiConfig
from matvlm.models.llava import LlavaHeadBiasConfig

TEXT = {"phi": PhiConfig, "qwen2": Qwen2Config, "llama": LlamaConfig}
"""Language models that a teacher may have. Only `phi` has hybrids, and a bias in its head."""
SELECT = {"patch": "default", "cls_patch": "full"}
"""The release's selections of vision features, in LLaVA's words: `patch` drops the first, although SigLIP has no
class token, so that 728 of 729 are left."""
CONFIG, MAMBA_CONFIG = "config.json", "mamba_config.json"
MODEL_TYPE, CONNECTOR_TYPE = "tinyllava", "mlp2x_gelu"

_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}
_ROPE = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
_SSM = {"expand", "ngroups", "d_state", "d_conv", "chunk_size"}


def read_release(folder: Path) -> tuple[LlavaConfig, dict]:
    """Configuration of a release's folder as ours, with the release's vocabulary, and its `config.json`.

    Raises:
        UserError: it is of another family, contradicts itself, or asks for what our models do not do.
    """
    path = folder / CONFIG
    raw = read_object(path)
    _allowed(path, "model_type", raw.get("model_type"), [MODEL_TYPE])
    for key in ("text_config", "vision_config"):
        if not isinstance(raw.get(key), dict):
            raise UserError(f"{path}: {key}: missing; allowed: an object")
    text, vision = raw["text_config"], raw["vision_config"]
    _allowed(path, "text_config.model_type", text.get("model_type"), list(TEXT))
    _allowed(path, "vision_config.model_type", vision.get("model_type"), [SiglipVisionConfig.model_type])
    _allowed(path, "connector_type", raw.get("connector_type"), [CONNECTOR_TYPE])
    select = raw.get("vision_feature_select_strategy", "patch")
    _allowed(path, "vision_feature_select_strategy", select, list(SELECT))
    layer = raw.get("vision_feature_layer", -2)

    text_config = _built(path, "text_config", TEXT[text["model_type"]], text)
    vision_config = _built(path, "vision_config", SiglipVisionConfig, vision | {"vision_use_head": False})
    hybrid = folder / MAMBA_CONFIG
    if hybrid.is_file():
        _allowed(hybrid, "(beside it) text_config.model_type", text["model_type"], ["phi"])
        text_config = _hybrid(hybrid, text_config)
    depth = vision_config.num_hidden_layers
    if not isinstance(layer, int) or isinstance(layer, bool) or not -depth - 1 <= layer <= depth:
        raise UserError(f"{path}: vision_feature_layer: is {layer!r}; allowed: {-depth - 1} to {depth}")
    patches = (vision_config.image_size // vision_config.patch_size) ** 2
    made = LlavaHeadBiasConfig if text["model_type"] == "phi" else LlavaConfig
    config = made(
        vision_config=vision_config,
        text_config=text_config,
        image_seq_length=patches - (select == "patch"),
        vision_feature_layer=layer,
        vision_feature_select_strategy=SELECT[select],
        projector_hidden_act="gelu",
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    return config, raw


def architecture(kind: type[PreTrainedConfig]) -> set[str]:
    """Names of what a part's configuration says of its architecture, without ids of tokens."""
    return (
        {field.name for field in fields(kind)}
        - {field.name for field in fields(PreTrainedConfig)}
        - _TOKENS
        - {"tie_word_embeddings"}
    )


def _built(path: Path, part: str, kind: type[PreTrainedConfig], raw: dict) -> PreTrainedConfig:
    """A part's configuration. A key that is missing has the class's default, as in the release; one that the class
    does not know is left out, since the release builds its model from the same class."""
    known = architecture(kind) | _TOKENS | {"tie_word_embeddings"}
    known |= _ROPE if kind is not SiglipVisionConfig else {"vision_use_head"}
    given = {key: value for key, value in raw.items() if key in known}
    try:
        config = kind(**given)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: {part}: {' '.join(str(error).split())}") from None
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    extra = ("image_size", "patch_size") if kind is SiglipVisionConfig else ("vocab_size", "num_key_value_heads")
    for key in (*sizes, *extra):
        if not isinstance(value := getattr(config, key), int) or value < 1:
            raise UserError(f"{path}: {part}.{key}: is {value!r}; allowed: a whole number above 0")
    if config.hidden_size % config.num_attention_heads:
        raise UserError(f"{path}: {part}.num_attention_heads: must divide hidden_size ({config.hidden_size})")
    rope = getattr(config, "rope_parameters", None) or {}
    for key, most in (("partial_rotary_factor", 1), ("rope_theta", math.inf)):
        if not isinstance(value := rope.get(key, 1), int | float) or not 0 < value <= most:
            raise UserError(f"{path}: {part}.{key}: is {value!r}; allowed: above 0, up to {most}")
    return config


def _hybrid(path: Path, text: PhiConfig) -> HybridPhiConfig:
    """The hybrid that `mamba_config.json` describes.

    Raises:
        UserError: it disagrees with the language model, or asks for another kind of mixer than ours.
    """
    raw = read_object(path)
    ssm = raw.pop("ssm_cfg", None)
    if not isinstance(ssm, dict) or (unknown := sorted(ssm.keys() - _SSM)):
        wrong = f"{unknown[0]} is not known" if isinstance(ssm, dict) else f"is {ssm!r}"
        raise UserError(f"{path}: ssm_cfg: {wrong}; allowed: an object with {', '.join(sorted(_SSM))}")
    head_dim = text.hidden_size // text.num_attention_heads
    wanted = {
        "d_model": text.hidden_size,
        "d_inner": text.hidden_size,
        "d_xb": text.num_key_value_heads * head_dim,
        "n_layer": text.num_hidden_layers,
        "intermediate_size": text.intermediate_size,
        "hidden_act": text.hidden_act,
        "resid_pdrop": text.resid_pdrop,
        "layer_norm_eps": text.layer_norm_eps,
        "rms_norm_eps": text.layer_norm_eps,
        "bidirectional": False,
        "vocab_size": (None, text.vocab_size),
        "ssm_cfg.expand": 1,
        "ssm_cfg.ngroups": text.num_attention_heads,
        "ssm_cfg.d_state": head_dim,
    }
    bias, attention = raw.pop("is_bias", False), raw.pop("attn_layers", None)
    _allowed(path, "is_bias", bias, [False, True])
    if unknown := sorted(raw.keys() - wanted.keys()):
        raise UserError(f"{path}: {unknown[0]}: not known; allowed: {', '.join(sorted(wanted))}")
    given = raw | {f"ssm_cfg.{key}": value for key, value in ssm.items()}
    for key, value in wanted.items():
        if key in given:
            _allowed(path, key, given[key], list(value) if isinstance(value, tuple) else [value])
    for key in ("d_model", "n_layer", "ssm_cfg.ngroups", "ssm_cfg.d_state"):
        if key not in given:
            raise UserError(f"{path}: {key}: missing; the language model has {wanted[key]}")
    for key in ("d_conv", "chunk_size"):
        if not isinstance(ssm.get(key, 1), int) or ssm.get(key, 1) < 1:
            raise UserError(f"{path}: ssm_cfg.{key}: is {ssm[key]!r}; allowed: a whole number above 0")
    depth = text.num_hidden_layers
    if not isinstance(attention, list) or not all(index in range(depth) for index in attention):
        raise UserError(f"{path}: attn_layers: must list layers from 0 to {depth - 1}")
    if len(set(attention)) == depth:
        raise UserError(f"{path}: attn_layers: lists all {depth} layers; a hybrid has at least one other")
    inherited = text.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        inherited.pop(key, None)
    return HybridPhiConfig(
        **inherited,
        layer_types=[ATTENTION if index in attention else MAMBA for index in range(depth)],
        mamba_conv_kernel=ssm.get("d_conv", 4),
        mamba_chunk_size=ssm.get("chunk_size", 256),
        mamba_bias=bias,
    )


def _allowed(path: Path, key: str, value: object, allowed: list) -> None:
    if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed):
        names = " or ".join(repr(other) for other in allowed)
        raise UserError(f"{path}: {key}: is {value!r}; allowed: {names}")
