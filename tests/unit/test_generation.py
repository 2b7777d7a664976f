"""transformers' `generate` on teachers and students: the same tokens whatever the cache."""

from __future__ import annotations

import pytest
import torch
from tiny_models import grouped_query_teacher, padded_batch, prompt
from transformers.generation import CompileConfig

from matvlm.models.folder import load_model
from matvlm.models.initialise import build_student

WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0},
    "beams": {"do_sample": False, "num_beams": 3},
}
CACHES = {
    "none": {"use_cache": False},
    "dynamic": {},
    "static": {"cache_implementation": "static"},
}
LENGTH = {"max_new_tokens": 8, "min_new_tokens": 8}
MODELS = ["teacher", "grouped-query teacher", "end-50", "grouped-query even-25", "grouped-query even-100"]


@pytest.fixture(scope="module", params=MODELS)
def model(request, small, debug):
    """In float32. The first layer, which caches are asked first, is Mamba-2 in `even-25`, each in `even-100`."""
    name = request.param.removeprefix("grouped-query ")
    grouped = name != request.param
    teacher = grouped_query_teacher(small, debug) if grouped else load_model(small / "teacher")
    return teacher if name == "teacher" else build_student(teacher, name, "attention", 1)


def tokens(model, inputs, **options):
    """What is generated, (b, 8) ids, always from the same random numbers."""
    torch.manual_seed(0)
    # Without a cache the model would look for another image where it has written `<image>`.
    ids = model.generate(**inputs, **LENGTH, **options, suppress_tokens=[model.config.image_token_id])
    return ids[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("way", WAYS)
def test_every_cache_gives_the_same_tokens(model, way):
    """For one prompt and for two padded on the left."""
    batch, alone = padded_batch(model)
    for inputs in (alone[1], batch):
        found = {name: tokens(model, inputs, **WAYS[way], **cache) for name, cache in CACHES.items()}
        for name, ids in found.items():
            assert torch.equal(ids, found["none"]), name
        assert ids.shape == (len(inputs["input_ids"]), 8)


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_padding_on_the_left_changes_no_answer(model, way):
    batch, prompts = padded_batch(model)
    together = tokens(model, batch, **WAYS[way], **CACHES["static"])
    for row, one in zip(together, prompts, strict=True):
        assert torch.equal(row, tokens(model, one, **WAYS[way])[0])


def test_the_ways_differ(model):
    """Or the tests above would show little."""
    inputs = prompt(model, batch=1)
    assert len({tuple(tokens(model, inputs, **way)[0].tolist()) for way in WAYS.values()}) > 1


@pytest.mark.parametrize("layout", ["end-50", "even-100"])
def test_a_step_with_a_static_cache_is_one_graph(small, layout):
    """Compiled whole, once for all steps, and the tokens stay. On a GPU such a step is a CUDA graph."""
    model = build_student(load_model(small / "teacher"), layout, "attention", 1)
    inputs = prompt(model)
    settings = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="eager")
    settings._compile_all_devices = True  # `generate` compiles on GPUs alone unless told
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = tokens(model, inputs, do_sample=False, **CACHES["static"], compile_config=settings)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch.equal(compiled, tokens(model, inputs, do_sample=False))
