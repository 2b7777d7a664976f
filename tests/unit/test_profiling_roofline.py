"""What a step and a model must cost at least, against a count of a real model's tensors and the measured peak."""

from __future__ import annotations

import copy

import pytest
import torch
from profiling_models import architecture, build, make_job
from torch import Tensor

from matvlm.profiling import run
from matvlm.profiling.measure import make_inputs
from matvlm.profiling.points import PAPER, Point
from matvlm.profiling.roofline import cache_bytes_of, copy_bandwidth, predict_memory, step_bytes

AT = Point(prompt_tokens=37, generated_tokens=1, batch=3)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=[None, "even-25", "even-100"])
def layout(request):
    return request.param


@pytest.fixture(scope="module", params=[4, 2], ids=["multi-head", "grouped-query"])
def model(layout, dtype, request):
    return build(layout, dtype, hidden_size=64, heads=4, kv_heads=request.param)


@torch.no_grad()
def held(model) -> dict[str, int]:
    """Bytes of the `keys` (values too), `states` and `marks` that a pass over the whole context leaves."""
    inputs = make_inputs(model, AT)
    ids = torch.cat([inputs.prompt, inputs.following], 1)
    cache = model(input_ids=ids, pixel_values=inputs.pixels, use_cache=True).past_key_values
    found = {"keys": 0, "states": 0, "marks": 0}
    for layer in cache.layers:
        for name in ("keys", "values"):
            if isinstance(part := getattr(layer, name, None), Tensor):
                found["marks" if part.dtype == torch.uint8 else "keys"] += part.numel() * part.element_size()
        for name in ("conv_states", "recurrent_states"):
            for part in getattr(layer, name, {}).values():
                found["states"] += part.numel() * part.element_size()
    return found


def test_cache_bytes_are_those_of_a_real_cache(model):
    """All but the marks that count tokens where no layer is attention: a hundredth of a hundredth of a layer."""
    count = held(model)
    assert cache_bytes_of(model.config, AT.context, AT.batch, model.dtype) == count["keys"] + count["states"]
    assert count["marks"] in (0, 2 * AT.batch * AT.context)


def test_a_step_reads_weights_once_and_the_cache_and_writes_states(model):
    inside = ("model.language_model.", "lm_head.")
    read = sum(
        weight.numel() * weight.element_size()
        for name, weight in model.named_parameters()
        if name.startswith(inside) and "embed_tokens" not in name
    )
    count = held(model)
    assert step_bytes(model, AT) == read + count["keys"] + 2 * count["states"]


def test_a_head_that_is_the_embedding_too_is_read_once():
    model = build(None)
    tied = copy.deepcopy(model)
    tied.lm_head.weight = tied.get_input_embeddings().weight
    assert step_bytes(tied, AT) == step_bytes(model, AT)


def test_a_cpu_has_no_bandwidth():
    assert copy_bandwidth(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("layout", "at", "runtime"),
    [
        (None, Point(300, 16, 2), ""),
        ("even-50", Point(300, 16, 2), ""),
        ("even-100", Point(300, 16, 2), ""),
        (None, Point(300, 16, 2), "generate-eager"),
        (None, Point(40, 1000, 4), ""),
        ("even-50", Point(40, 1000, 4), ""),
    ],
)
def test_memory_is_foreseen(layout, at, runtime):
    """To a few per cent of all but the weights, and never more than was measured: the prompt's logits, its image
    and small temporaries are not counted.

    That holds where the MLP's working set, eager scores or the cache are what is largest, as in large models. It
    does not where the torch reference of the mixers is: its scan takes what no kernel does, twice that where it
    must widen bfloat16. Nor do eager scores in bfloat16 on a CPU, whose softmax widens them first.
    """
    wide = architecture(hidden_size=64, intermediate_size=512, heads=4, kv_heads=4)
    lengths = {"prompt_tokens": [at.prompt_tokens], "generated_tokens": [at.generated_tokens]}
    changed = {**lengths, "beyond_positions": True, "architecture": wide, "runtime": runtime}
    if runtime:
        changed["protocol"] = PAPER
    job = make_job(layout, at, **changed)
    row = run._in_own_process(*(getattr(job, name) for name in job.__dataclass_fields__))
    measured, foreseen = (row[f"{name}_memory_bytes"] - row["weight_bytes"] for name in ("peak", "predicted"))
    assert 0.93 * measured < foreseen <= measured


def test_the_fused_runtime_holds_its_whole_cache_from_the_beginning():
    """It does not copy what it holds, but holds as much in the prompt pass."""
    model = build(None)
    at = Point(20, 200, 1)
    plain, fused = (predict_memory(model, at, name) for name in ("transformers", "fused"))
    cache = cache_bytes_of(model.config, at.context, at.batch, model.dtype)
    weights = sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
    assert min(plain, fused) > weights + cache
