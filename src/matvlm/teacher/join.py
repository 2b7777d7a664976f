"""A teacher of a language model that is given: with a new SigLIP tower and connector it becomes a LLaVA model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from matvlm.config import JoinedTeacher, LlamaArchitecture
from matvlm.data.conversations import IMAGE
from matvlm.data.processor import build_processor, count_image_tokens
from matvlm.data.render import CHAT_TEMPLATE
from matvlm.errors import UserError
from matvlm.models.folder import check_folder, load_strictly
from matvlm.models.llava import new_model
from matvlm.sections import VisionArchitecture
from matvlm.teacher.build import tower_config

ROWS = 64
"""The embedding gets a multiple of this many rows: a head of odd width is slow on a GPU."""


def join_teacher(
    language: Path,
    vision: VisionArchitecture,
    *,
    feature_layer: int = -2,
    select_strategy: Literal["full", "default"] = "full",
    seed: int,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA model in float32, whose tower and connector are untrained, and its processor.

    Its vocabulary is the language model's and `<image>`. The rows added to the embedding, and to the head, are the
    mean of all others: exp being convex, none of their tokens is more probable than the others are on average.
    Weights that were tied stay so.

    Args:
        language: folder of a causal language model without a bias in its head, as `matvlm.teacher.smollm2`
            writes it.
        vision: the tower. feature_layer, select_strategy: as `vision_feature_layer` and
            `vision_feature_select_strategy` of LLaVA. seed: of the tower's and the connector's weights.

    Raises:
        UserError: the folder is not whole, or its tensors are not those that its config asks for.
    """
    check_folder(language)
    return _join(language, vision, feature_layer, select_strategy, seed)


def _join(
    language: Path,
    vision: VisionArchitecture,
    feature_layer: int,
    select_strategy: Literal["full", "default"],
    seed: int,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    given = load_strictly(AutoModelForCausalLM, language, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(
        language, local_files_only=True, extra_special_tokens={"image_token": IMAGE}
    )
    tokenizer.chat_template = None  # its own; the processor has that of our prompts
    old = given.config.vocab_size
    given.resize_token_embeddings(embedding_rows(max(old, len(tokenizer))), mean_resizing=False)
    with torch.no_grad():
        for rows in (given.get_input_embeddings().weight, given.get_output_embeddings().weight):
            rows[old:] = rows[:old].mean(0)

    processor = build_processor(tokenizer, vision.image_size, vision.patch_size, select_strategy)
    processor.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    model = new_model(
        joined_config(
            given.config,
            vision,
            image_token_id=processor.image_token_id,
            image_tokens=count_image_tokens(processor),
            feature_layer=feature_layer,
            select_strategy=select_strategy,
        )
    )
    model.model.language_model.load_state_dict(given.model.state_dict())
    model.lm_head.load_state_dict(given.lm_head.state_dict())
    return model.eval(), processor


def embedding_rows(tokens: int) -> int:
    """Rows of the embedding for so many tokens."""
    return -(-tokens // ROWS) * ROWS


def joined_config(
    text: LlamaConfig,
    vision: VisionArchitecture,
    *,
    image_token_id: int,
    image_tokens: int,
    feature_layer: int,
    select_strategy: str,
) -> LlavaConfig:
    """Configuration of the whole, ``text`` being that of the language model with its final number of rows."""
    return LlavaConfig(
        vision_config=tower_config(vision),
        text_config=text,
        image_token_id=image_token_id,
        image_seq_length=image_tokens,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=select_strategy,
        projector_hidden_act="gelu",
        pad_token_id=text.pad_token_id,
        eos_token_id=text.eos_token_id,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def join_given(
    settings: JoinedTeacher, language: Path, seed: int
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """As `join_teacher`, of a folder that `check_folder` has just found whole, and whose model must be what
    ``settings`` say.

    Raises:
        UserError: the language model is of another size, or its tensors are not those that its config asks for.
    """
    found = AutoConfig.from_pretrained(language, local_files_only=True)
    for key, wanted in text_sizes(settings.text).items():
        if getattr(found, key) != wanted:
            problem = f"{key} is {getattr(found, key)}, but teacher.text asks for {wanted}"
            raise UserError(f"{language / 'config.json'}: {problem}")
    strategy = settings.vision_feature_select_strategy
    return _join(language, settings.vision, settings.vision_feature_layer, strategy, seed)


def text_sizes(text: LlamaArchitecture) -> dict[str, int]:
    """The sizes of a language model by their names in its own configuration."""
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "max_position_embeddings": text.max_position_embeddings,
    }


def planned_config(settings: JoinedTeacher) -> LlavaConfig:
    """Configuration of the teacher that ``settings`` describe, for what depends on its size alone."""
    text = LlamaConfig(**text_sizes(settings.text), tie_word_embeddings=True)
    image = text.vocab_size
    text.vocab_size = embedding_rows(image + 1)
    return joined_config(
        text,
        settings.vision,
        image_token_id=image,
        image_tokens=settings.image_tokens,
        feature_layer=settings.vision_feature_layer,
        select_strategy=settings.vision_feature_select_strategy,
    )
