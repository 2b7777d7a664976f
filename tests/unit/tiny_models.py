"""Models of a few thousand random weights, and prompts for them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from matvlm.config import Preset
from matvlm.models.folder import load_model
from matvlm.models.llava import new_model
from matvlm.teacher.build import build_teacher


def grouped_query_teacher(small: Path, debug: Preset) -> LlavaForConditionalGeneration:
    """A teacher like that of the fixture `small`, but its heads share keys and values in pairs."""
    found = load_model(small / "teacher").config
    text = debug.teacher.text.model_copy(update={"kv_heads": debug.teacher.text.heads // 2})
    ids = {"image": found.image_token_id, "eos": found.text_config.eos_token_id, "pad": found.pad_token_id}
    settings = debug.teacher.model_copy(update={"text": text})
    built = build_teacher(settings, vocab_size=found.text_config.vocab_size, token_ids=ids, seed=0).eval()
    built.lm_head.weight.data *= 50
    return built


def llama_teacher(small: Path) -> LlavaForConditionalGeneration:
    """A teacher like that of the fixture `small` with a Llama of SmolLM2's kind: nine heads on three of keys and
    values, and a head tied to the embedding."""
    found = load_model(small / "teacher").config
    text = LlamaConfig(
        vocab_size=found.text_config.vocab_size,
        hidden_size=36,
        intermediate_size=52,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        bos_token_id=found.text_config.bos_token_id,
        eos_token_id=found.text_config.eos_token_id,
        pad_token_id=found.pad_token_id,
        tie_word_embeddings=True,
    )
    rest = {key: value for key, value in found.to_dict().items() if key not in ("model_type", "text_config")}
    torch.manual_seed(0)
    built = new_model(LlavaConfig(**rest | {"tie_word_embeddings": True}, text_config=text)).eval()
    built.lm_head.weight.data *= 50
    return built


def prompt(model: LlavaForConditionalGeneration, length: int = 9, batch: int = 2, images: bool = True) -> dict:
    """Random text after the image's places: input_ids (batch, places + length), pixel_values (batch, 3, S, S)."""
    torch.manual_seed(0)
    ids = torch.randint(10, 40, (batch, length))
    count = model.config.image_seq_length if images else 0
    ids = torch.cat([torch.full((batch, count), model.config.image_token_id), ids], 1)
    size = model.config.vision_config.image_size
    return {"input_ids": ids, "pixel_values": torch.randn(batch, 3, size, size)}


def padded_batch(model: LlavaForConditionalGeneration) -> tuple[dict, list[dict]]:
    """Two prompts of different lengths as one batch padded on the left, and each on its own."""
    alone = [prompt(model, length, 1) for length in (5, 9)]
    padding = torch.full((1, 4), model.config.pad_token_id)
    ids = torch.cat([torch.cat([padding, alone[0]["input_ids"]], 1), alone[1]["input_ids"]])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    pixels = torch.cat([one["pixel_values"] for one in alone])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, alone
