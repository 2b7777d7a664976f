"""The embedded teacher: a small SigLIP tower, a two-layer connector and a Phi language model, as
transformers' own LLaVA model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PhiConfig, SiglipVisionConfig

from matvlm.config import Architecture, EmbeddedTeacher
from matvlm.errors import UserError
from matvlm.models.folder import load_model
from matvlm.sections import VisionArchitecture


def build_teacher(
    settings: EmbeddedTeacher, *, vocab_size: int, token_ids: dict[str, int], seed: int
) -> LlavaForConditionalGeneration:
    """An untrained teacher in float32; ``seed`` is of its random weights. See `teacher_config`."""
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(teacher_config(settings, vocab_size=vocab_size, token_ids=token_ids))


def load_given(settings: EmbeddedTeacher, folder: Path) -> LlavaForConditionalGeneration:
    """A teacher on disk that has the architecture configured.

    Raises:
        UserError: it is missing, altered, or of another architecture than ``settings`` says.
    """
    model = load_model(folder)
    found, text = model.config, model.config.text_config
    ids = {"image": found.image_token_id, "eos": text.eos_token_id, "pad": text.pad_token_id}
    wanted = teacher_config(settings, vocab_size=text.vocab_size, token_ids=ids)
    remedy = "set teacher.source to train for another architecture"
    for part in ("vision_config", "text_config"):
        check_config(folder, part, wanted, found, asks="params.yaml asks", remedy=remedy)
    return model


def check_config(
    folder: Path, part: str, wanted: LlavaConfig, found: LlavaConfig, *, asks: str, remedy: str
) -> None:
    """Whether a part of the configuration found in ``folder``, as `vision_config`, is the one wanted.

    Args:
        asks: who asks for it. remedy: what to do where it is another.

    Raises:
        UserError: it is another; naming the first key that differs.
    """
    ours, theirs = getattr(wanted, part).to_diff_dict(), getattr(found, part).to_diff_dict()
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key) and key not in ("dtype", "architectures", "transformers_version"):
            raise UserError(
                f"{folder / 'config.json'}: {part}.{key} is {theirs.get(key)!r}, but {asks} for "
                f"{ours.get(key)!r}; {remedy}"
            )


def teacher_config(
    settings: Architecture,
    *,
    vocab_size: int,
    token_ids: dict[str, int],
    activation: str = "gelu_pytorch_tanh",
    kind: type[LlavaConfig] = LlavaConfig,
) -> LlavaConfig:
    """Configuration of the teacher.

    Args:
        vocab_size: rows of the embedding. token_ids: ids of ``image``, ``eos`` and ``pad``.
        activation: of the language model's MLPs; the default is Phi's ``gelu_new`` as one kernel.
        kind: class of the configuration.
    """
    text = settings.text
    return kind(
        vision_config=tower_config(settings.vision),
        text_config=PhiConfig(
            vocab_size=vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            num_key_value_heads=text.kv_heads,
            partial_rotary_factor=text.partial_rotary_factor,
            hidden_act=activation,
            max_position_embeddings=text.max_position_embeddings,
            bos_token_id=token_ids["eos"],
            eos_token_id=token_ids["eos"],
            pad_token_id=token_ids["pad"],
        ),
        image_token_id=token_ids["image"],
        image_seq_length=settings.image_tokens,
        vision_feature_layer=settings.vision_feature_layer,
        vision_feature_select_strategy=settings.vision_feature_select_strategy,
        projector_hidden_act="gelu",
        pad_token_id=token_ids["pad"],
        eos_token_id=token_ids["eos"],
        tie_word_embeddings=False,
    )


def tower_config(vision: VisionArchitecture) -> SiglipVisionConfig:
    """Configuration of a SigLIP tower without its pooling head, which LLaVA does not read."""
    return SiglipVisionConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        vision_use_head=False,
    )
