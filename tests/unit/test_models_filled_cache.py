"""The cache of fixed capacity: whatever enters and however, it gives what the library's own cache gives."""

from __future__ import annotations

import copy

import pytest
import torch
from profiling_models import build
from tiny_models import padded_batch, prompt
from transformers import DynamicCache

from matvlm.models.filled_cache import FilledLayer, filled_cache

CAPACITY = 40
EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(scope="module", params=[(None, 4), (None, 2), ("even-50", 4), ("even-50", 2), ("even-100", 4)])
def model(request):
    """In float64, so that another order of sums is not a difference."""
    layout, kv_heads = request.param
    built = build(layout, hidden_size=64, heads=4, kv_heads=kv_heads)
    built.config.image_seq_length = 16
    built.config.pad_token_id = 1
    return copy.deepcopy(built).double()


def caches(model):
    text = model.config.text_config
    return DynamicCache(config=text), filled_cache(text, CAPACITY)


def inputs(model, length=9, batch=2):
    given = prompt(model, length, batch)
    return {**given, "pixel_values": given["pixel_values"].double()}


@torch.no_grad()
def run(model, cache, *passes):
    """Logits of passes one after the other through a cache."""
    return [model(**given, past_key_values=cache, use_cache=True).logits for given in passes]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def assert_as_dynamic(model, *passes):
    dynamic, filled = caches(model)
    assert_equal(run(model, filled, *passes), run(model, dynamic, *passes))
    assert filled.get_seq_length() == dynamic.get_seq_length()


def text(tokens):
    return {"input_ids": tokens}


def test_a_prompt_and_single_steps(model):
    given = inputs(model)
    torch.manual_seed(1)
    steps = [text(torch.randint(10, 40, (2, 1))) for _ in range(5)]
    assert_as_dynamic(model, given, *steps)


def test_a_prompt_in_chunks(model):
    """The image first, then text in portions of several lengths; and all is as in one pass without a cache."""
    given = inputs(model)
    torch.manual_seed(1)
    chunks = [text(torch.randint(10, 40, (2, count))) for count in (3, 1, 6)]
    assert_as_dynamic(model, given, *chunks)
    whole = torch.cat([given["input_ids"], *(chunk["input_ids"] for chunk in chunks)], 1)
    with torch.no_grad():
        expected = model(input_ids=whole, pixel_values=given["pixel_values"], use_cache=False).logits
    found = run(model, caches(model)[1], given, *chunks)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=1e-9)


def test_a_padded_batch(model):
    batch, _ = padded_batch(model)
    batch["pixel_values"] = batch["pixel_values"].double()
    mask, torch_steps = batch["attention_mask"], []
    for _ in range(3):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
        torch_steps.append(text(torch.full((2, 1), 11)) | {"attention_mask": mask})
    assert_as_dynamic(model, batch, *torch_steps)


@pytest.mark.parametrize("padded", [False, True])
def test_generated_tokens_are_those_without_it(model, padded):
    given = padded_batch(model)[0] if padded else inputs(model)
    given["pixel_values"] = given["pixel_values"].double()
    arguments = {**given, "max_new_tokens": 8, "do_sample": False, "eos_token_id": -1, "pad_token_id": 1}
    expected = model.generate(**arguments)
    cache = caches(model)[1]
    assert torch.equal(model.generate(**arguments, past_key_values=cache), expected)
    assert cache.get_seq_length() == expected.shape[1] - 1
    cache.reset()
    assert torch.equal(model.generate(**arguments, past_key_values=cache), expected)


def test_a_conversation_is_continued_from_it(model):
    """`generate` again with what it has said and more behind it."""
    given = inputs(model, batch=1)
    arguments = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1, "pad_token_id": 1}
    dynamic, filled = caches(model)
    found = []
    for cache in (dynamic, filled):
        first = model.generate(**given, **arguments, past_key_values=cache)
        more = torch.cat([first, torch.tensor([[20, 21, 22]])], 1)
        found.append(model.generate(input_ids=more, **arguments, past_key_values=cache))
    assert torch.equal(*found)


def test_after_a_reset_it_is_as_new(model):
    """In place: its tensors are the same ones, as a graph that was recorded needs them."""
    long, short = inputs(model, 19), inputs(model, 5)
    cache, step = caches(model)[1], text(torch.full((2, 1), 11))
    run(model, cache, long, step)
    held = [part.data_ptr() for layer in cache.layers for part in tensors(layer)]
    cache.reset()
    assert cache.get_seq_length() == 0
    assert_equal(run(model, cache, short, step), run(model, caches(model)[1], short, step))
    assert held == [part.data_ptr() for layer in cache.layers for part in tensors(layer)]


def tensors(layer):
    for held in vars(layer).values():
        for part in held.values() if isinstance(held, dict) else [held]:
            if isinstance(part, torch.Tensor) and part.dim():
                yield part


def test_the_last_position_can_be_used_and_none_beyond(model):
    cache, step = caches(model)[1], text(torch.full((2, 1), 11))
    run(model, cache, inputs(model, CAPACITY - 16 - 1), step)
    assert cache.get_seq_length() == CAPACITY
    with pytest.raises(ValueError, match=f"{CAPACITY + 1} positions exceed the cache's capacity of {CAPACITY}"):
        run(model, cache, step)
    with pytest.raises(ValueError, match=f"{CAPACITY + 2} positions exceed the cache's capacity of {CAPACITY}"):
        run(model, caches(model)[1], inputs(model, CAPACITY - 16 + 2))


def test_what_does_not_fit_changes_nothing():
    layer = FilledLayer(4)
    first = torch.randn(1, 2, 3, 5)
    layer.update(first, first)
    with pytest.raises(ValueError, match="5 positions exceed"):
        layer.update(first[:, :, :2], first[:, :, :2])
    assert layer.get_seq_length() == 3
    keys, values = layer.update(first[:, :, :1], first[:, :, :1])
    assert torch.equal(keys, torch.cat([first, first[:, :, :1]], 2))
    assert torch.equal(values, keys)


def test_attention_sees_what_is_filled_in_place():
    layer = FilledLayer(8)
    first = torch.randn(1, 2, 3, 5)
    keys, values = layer.update(first, -first)
    assert torch.equal(keys, first)
    assert torch.equal(values, -first)
    assert keys.data_ptr() == layer.keys.data_ptr()
    assert layer.get_mask_sizes(2) == (5, 0)
    assert layer.get_max_length() == 8
