"""Fused decoding and the other ways to generate on a GPU give what the plain pass gives."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaForConditionalGeneration, PhiConfig, SiglipVisionConfig

from matvlm.generation.fused import FusedDecoder
from matvlm.models.initialise import build_student
from matvlm.models.llava import LlavaHeadBiasConfig, new_model

STEPS = 20
IMAGE = 5


def teacher(head_dim: int, heads: int, kv_heads: int, spread: float = 0.2) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )
    width = head_dim * heads
    text = PhiConfig(
        vocab_size=1003,
        hidden_size=width,
        intermediate_size=2 * width + 24,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        partial_rotary_factor=0.5,
        max_position_embeddings=2048,
        initializer_range=spread,
    )
    config = LlavaHeadBiasConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        image_seq_length=16,
    )
    model = new_model(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(spread / 2 * torch.randn_like(weight))
        model.lm_head.bias[IMAGE] -= 100  # never generated: it would ask for another image
    return model


def prompt(batch: int, length: int, padding: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(10, 1000, (batch, length), device="cuda")
    ids[:, padding : padding + 16] = IMAGE
    mask = torch.ones_like(ids)
    if padding:
        ids[0, 16 : 16 + padding], ids[0, :padding] = IMAGE, 1
        ids[0, padding : padding + 16] = IMAGE
        mask[0, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(batch, 3, 32, 32, device="cuda")}


def generate(model: LlavaForConditionalGeneration, inputs: dict, **kwargs):
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}
    chosen = {"do_sample": False, "pad_token_id": 1, "eos_token_id": None, "max_new_tokens": STEPS, **kwargs}
    return model.generate(**inputs, **chosen, return_dict_in_generate=True, output_logits=True)


pytest.importorskip("triton")
SHAPES = [(80, 4, 4), (32, 3, 3), (64, 4, 2)]
MODELS = [None, "even-50", "even-100"]


@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), SHAPES)
@pytest.mark.parametrize("layout", MODELS)
@pytest.mark.parametrize(("batch", "padding"), [(1, 0), (3, 0), (3, 7)])
def test_fused_steps_in_float32(
    head_dim: int, heads: int, kv_heads: int, layout: str | None, batch: int, padding: int
) -> None:
    model = teacher(head_dim, heads, kv_heads)
    if layout:
        model = build_student(model, layout, "attention", 0)
    model = model.cuda()
    inputs = prompt(batch, 300, padding)
    without = generate(model, inputs, use_cache=False)
    with_cache = generate(model, inputs)
    decoder = FusedDecoder(model, batch, 300 + STEPS)
    for _ in range(2):  # the second generation reuses graph and cache
        decoder.reset()
        with decoder.active():
            fused = generate(model, inputs, past_key_values=decoder.cache)
        assert torch.equal(fused.sequences, without.sequences)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(fused.logits, without.logits, strict=True)]
        assert max(errors) < 1e-4
    assert torch.equal(with_cache.sequences, without.sequences)


@pytest.mark.parametrize("layout", MODELS)
@pytest.mark.parametrize("batch", [1, 8])
def test_fused_steps_in_bfloat16(layout: str | None, batch: int) -> None:
    model = teacher(80, 4, 4, spread=0.03).bfloat16()
    if layout:
        model = build_student(model, layout, "attention", 0)
    model = model.cuda()
    exact = model.__class__(model.config).cuda().float().eval()
    exact.load_state_dict(model.state_dict())
    inputs = prompt(batch, 600)
    decoder = FusedDecoder(model, batch, 600 + STEPS)
    with decoder.active():
        fused = generate(model, inputs, past_key_values=decoder.cache)
    # What was generated goes through the exact model once: logits of the same tokens.
    ids, count = fused.sequences, len(fused.logits)
    with torch.no_grad():
        out = exact(input_ids=ids, pixel_values=inputs["pixel_values"], logits_to_keep=count + 1).logits
    wanted = out[:, :-1]
    found = torch.stack(fused.logits, 1)
    plain = float((generate(model, inputs).logits[0] - wanted[:, 0]).norm() / wanted[:, 0].norm())
    errors = (found - wanted).flatten(2).norm(dim=(0, 2)) / wanted.norm(dim=(0, 2))
    assert float(errors.max()) < max(1e-2, 2 * plain), (errors, plain)


@pytest.mark.parametrize("layout", ["even-50", "even-100"])
@pytest.mark.parametrize("choice", [{}, {"do_sample": True}, {"num_beams": 3}])
def test_static_cache_with_compiled_steps(layout: str, choice: dict) -> None:
    model = build_student(teacher(64, 4, 2), layout, "attention", 0).cuda()
    inputs = prompt(2, 100)
    torch.manual_seed(3)
    plain = generate(model, inputs, **choice)
    torch.manual_seed(3)
    static = generate(model, inputs, cache_implementation="static", **choice)
    assert torch.equal(plain.sequences, static.sequences)


def test_the_capacity_is_never_passed() -> None:
    model = teacher(64, 2, 2).cuda()
    decoder = FusedDecoder(model, 1, 64)
    with decoder.active(), pytest.raises(ValueError, match="64 tokens"):
        generate(model, prompt(1, 60), past_key_values=decoder.cache)
