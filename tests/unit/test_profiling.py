"""Profiling: the loop that is timed is the model's own generation, and the figures are of what they say."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
import time

import pytest
import torch
from profiling_models import HEADS, IMAGE_TOKENS, LAYERS, WIDTH, build, make_job, make_settings

from matvlm.errors import UserError
from matvlm.models.filled_cache import filled_cache
from matvlm.profiling import generated, measure, point
from matvlm.profiling.energy import energy_j
from matvlm.profiling.points import GENERATE, PAPER, SAME, Point, points_of, runtimes_of

CPU = torch.device("cpu")
LAYOUTS = [None, "even-25", "even-75", "even-100"]


@pytest.fixture(scope="module")
def teacher():
    return build(None)


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def double(model):
    """In float64, so that only rounding of `generate`'s logits to float32 is left."""
    return copy.deepcopy(model).double()


@contextlib.contextmanager
def watched(model):
    """The model's forward passes: (tokens that entered, tokens in the cache afterwards, last logits)."""
    passes = []

    def note(module, args, kwargs, out):
        passes.append((kwargs["input_ids"].shape[1], out.past_key_values.get_seq_length(), out.logits[:, -1]))

    handle = model.register_forward_hook(note, with_kwargs=True)
    yield passes
    handle.remove()


def generate(model, count, **given):
    """The logits of ``count`` tokens that `generate` finds greedily."""
    return model.generate(
        **given,
        attention_mask=torch.ones_like(given["input_ids"]),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=-1,
        output_logits=True,
        return_dict_in_generate=True,
    ).logits


def assert_equal_logits(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=1e-6)


def test_the_measured_loop_is_generation(double):
    """Prompt pass and single steps give the logits of `generate` on the same tokens."""
    at = Point(prompt_tokens=20, generated_tokens=30, batch=2)
    inputs, runtime = measure.make_inputs(double, at), measure.Plain(double, at)
    with watched(double) as passes:
        runtime.prompt_pass(inputs.prompt, inputs.pixels)
        for _ in range(6):
            runtime.step()
    expected = generate(double, 7, input_ids=inputs.prompt, pixel_values=inputs.pixels)
    assert_equal_logits([logits for _, _, logits in passes], expected)


def test_a_filled_cache_is_continued_as_generate_continues_it(double):
    at = Point(prompt_tokens=20, generated_tokens=30, batch=2)
    inputs, runtime = measure.make_inputs(double, at), measure.Plain(double, at)
    ids = torch.cat([inputs.prompt, inputs.following[:, :26]], 1)
    runtime.prompt_pass(inputs.prompt, inputs.pixels)
    measure.fill(runtime.cache, 45)
    runtime._token = ids[:, 45:]
    given = copy.deepcopy(runtime.cache)
    with watched(double) as passes:
        for _ in range(3):
            runtime.step()
    expected = generate(double, 3, input_ids=ids, past_key_values=given)
    assert_equal_logits([logits for _, _, logits in passes], expected)


@pytest.mark.parametrize("fixed", [False, True])
def test_filling_appends_random_keys_and_values_and_leaves_the_rest(model, fixed):
    """In the library's cache, which grows, and in one of fixed capacity."""
    inputs = measure.make_inputs(model, Point(20, 16, 2))
    cache = filled_cache(model.config.text_config, 40) if fixed else None
    given = {"input_ids": inputs.prompt, "pixel_values": inputs.pixels, "use_cache": True}
    with torch.no_grad():
        cache = model(**given, past_key_values=cache).past_key_values
    before = copy.deepcopy(cache)
    measure.fill(cache, 36)
    assert cache.get_seq_length() == 36
    for layer, was in zip(cache.layers, before.layers, strict=True):
        for states in ("conv_states", "recurrent_states"):
            if hasattr(was, states):
                assert torch.equal(getattr(layer, states)[0], getattr(was, states)[0])
        if getattr(was, "keys", None) is None:
            continue
        for name in ("keys", "values"):
            now = getattr(layer, name)
            assert now.shape[2] == (40 if fixed else 36)
            assert torch.equal(now[:, :, :20], getattr(was, name)[:, :, :20])
            if now.is_floating_point():
                assert 0.8 < now[:, :, 20:36].std() < 1.2
                assert len(now[:, :, 20:36].unique()) > 900
                assert not now[:, :, 36:].any()
    measure.fill(cache, 36)
    assert cache.get_seq_length() == 36


def test_the_prompt_is_an_image_and_text(teacher):
    inputs = measure.make_inputs(teacher, Point(prompt_tokens=20, generated_tokens=5, batch=3))
    image = inputs.prompt == teacher.config.image_token_id
    assert image[:, :IMAGE_TOKENS].all()
    assert not image[:, IMAGE_TOKENS:].any()
    assert not (inputs.following == teacher.config.image_token_id).any()
    assert inputs.prompt.shape == (3, 20)
    assert inputs.following.shape == (3, 5)
    assert inputs.pixels.shape == (3, 3, 64, 64)


def test_steps_are_timed_at_the_stated_context(model):
    """Single steps after the filling, and the last of them is the last of the context."""
    at, settings = Point(prompt_tokens=20, generated_tokens=16, batch=1), make_settings(warmup_steps=2)
    with watched(model) as passes:
        measure.time_steps(measure.Plain(model, at), measure.make_inputs(model, at), settings)
    assert [passed[:2] for passed in passes] == [(20, 20), *((1, n) for n in range(31, 37))]


def test_generate_is_timed_at_the_stated_context_twice(model):
    at, settings = Point(prompt_tokens=20, generated_tokens=16, batch=1), make_settings(warmup_steps=2)
    with watched(model) as passes:
        found = generated.time_generate(measure.Plain(model, at), measure.make_inputs(model, at), settings)
    once = [(20, 20), *((1, n) for n in range(30, 37))]
    assert [passed[:2] for passed in passes] == once * 2
    assert len(found) == 2
    assert min(found) > 0


def test_a_context_that_is_truly_generated(model):
    """Token by token; the last one need not go through the model."""
    at = Point(prompt_tokens=20, generated_tokens=16, batch=2)
    with watched(model) as passes:
        generated.time_generated(measure.Plain(model, at), measure.make_inputs(model, at), make_settings())
    assert [passed[:2] for passed in passes] == [(20, 20), *((1, n) for n in range(21, 36))]


def test_only_the_last_steps_count(teacher, monkeypatch):
    """Of a generation of which each step takes longer than the one before."""
    monkeypatch.setattr(measure, "time_each", lambda step, count, device: [float(n) for n in range(count)])
    at = Point(20, 16, 1)
    inputs = measure.make_inputs(teacher, at)
    settings = make_settings(warmup_steps=4, decode_steps=5)
    assert measure.time_steps(measure.Plain(teacher, at), inputs, settings) == 6  # the median of 4 to 8
    monkeypatch.setattr(measure.Clock, "seconds", lambda clock: [float(n) for n in range(len(clock._marks) - 1)])
    assert generated.time_generate(measure.Plain(teacher, at), inputs, settings) == (6, 6)


def test_each_step_is_timed():
    assert all(0.01 <= seconds < 1 for seconds in measure.time_each(lambda: time.sleep(0.01), 3, CPU))
    clock = measure.Clock(CPU)
    marking = generated.Marking(clock)
    for _ in range(4):
        assert not marking(torch.zeros(2, 1), None).any()
        time.sleep(0.01)
    assert len(clock.seconds()) == 3
    assert all(0.01 <= seconds < 1 for seconds in clock.seconds())


def test_points():
    settings = make_settings(prompt_tokens=[20, 30], generated_tokens=[16, 32], batch_sizes=[1, 2])
    points = points_of(settings)
    assert len(set(points)) == len(points) == 8
    assert Point(prompt_tokens=30, generated_tokens=16, batch=2) in points
    assert Point(prompt_tokens=30, generated_tokens=16, batch=2).context == 46


def test_runtimes():
    """One for all, or as the paper has it: plain generation for the teacher, one of its own for hybrids."""
    settings = make_settings(attention=["sdpa", "eager"])
    assert runtimes_of(settings, SAME, True) == runtimes_of(settings, SAME, False) == [""]
    assert runtimes_of(settings, PAPER, True) == [f"{GENERATE}sdpa", f"{GENERATE}eager"]
    assert runtimes_of(settings, PAPER, False) == ["fused"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_runtime_has_the_attention_that_it_names(attention):
    model = build(None)
    assert generated.plain_generate(model, attention) is measure.Plain
    assert model.config.text_config._attn_implementation == attention


def test_a_cpu_tells_no_energy():
    assert energy_j(CPU) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", [None, "even-50"])
def test_a_random_architecture_has_the_type_and_layout_asked_for(layout, dtype):
    model = build(layout, dtype)
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
    kinds = getattr(model.config.text_config, "layer_types", None)
    assert (kinds or []).count("linear_attention") == (2 if layout else 0)
    assert not model.training
    assert torch.get_default_dtype() == torch.float32
    again = build(layout, dtype)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


@pytest.mark.parametrize(("layout", "replaced"), [(None, 0), ("even-25", 1), ("even-75", 3), ("even-100", 4)])
@pytest.mark.parametrize(("tokens", "batch"), [(16, 1), (200, 3)])
def test_cache_bytes_are_keys_values_and_states(layout, replaced, tokens, batch):
    """Attention keeps a key and a value a token, Mamba-2 one state and four inputs of its convolution; where no
    attention is left, two marks of a byte count the tokens."""
    found = measure.measure_memory(measure.Plain, build(layout), Point(20, tokens, batch))["cache_bytes"]
    attention = 2 * WIDTH * (20 + tokens) * 4
    mamba = (WIDTH * (WIDTH // HEADS) + 3 * WIDTH * 4) * 4
    marks = 2 * (20 + tokens) if replaced == LAYERS else 0
    assert found == batch * ((LAYERS - replaced) * attention + replaced * mamba + marks)


def test_hybrids_hold_less_at_a_long_context():
    at = Point(20, 200, 1)
    held = [measure.measure_memory(measure.Plain, build(layout), at) for layout in (*LAYOUTS[:3], "even-50")]
    teacher, quarter, most, half = (figures["cache_bytes"] for figures in held)
    assert teacher > quarter + 0.2 * teacher
    assert quarter > half > most
    weights = [figures["weight_bytes"] for figures in held]
    assert weights[0] < weights[1] < weights[3] < weights[2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_tokens": [16]}, r"prompt_tokens: 16 leaves no room for text; an image takes 16"),
        ({"decode_steps": 64}, r"generated_tokens: 16 is less than warmup_steps \+ decode_steps \(65\)"),
        ({"generated_tokens": [16, 237]}, r"237 after 20 prompt_tokens exceed .* max_position_embeddings \(256\)"),
    ],
)
def test_points_that_the_model_does_not_allow(changed, message, teacher):
    with pytest.raises(UserError, match=message) as caught:
        measure.check_points(teacher, make_settings(**changed))
    assert "\n" not in str(caught.value)
    measure.check_points(teacher, make_settings(generated_tokens=[16, 236]))


def test_a_context_beyond_the_models_positions_is_measured_if_asked_for():
    settings = {"generated_tokens": [237], "beyond_positions": True}
    row = point.measure(make_job(at=Point(20, 237, 1), **settings))
    assert row["beyond_positions"] is True
    assert row["decode_tokens_per_s"] > 0
    assert point.measure(make_job())["beyond_positions"] is False


def test_the_peak_counts_what_windows_hold():
    """Bytes given out within windows, what was there before included, and nothing between them."""
    program = """
import torch
from matvlm.profiling.memory import measure_peak
def take(size):
    return torch.empty(size, dtype=torch.uint8)
with measure_peak(torch.device("cpu"), held=7) as peak:
    kept = take(1000)
    with peak.window():
        lost = take(5000)
        del lost
        also_kept = take(3000)
    between = take(1_000_000)
    del between
    with peak.window():
        last = take(4500)
        del last, kept
figures = peak.figures()
assert figures["peak_memory_bytes"] == 7 + 1000 + 3000 + 4500, figures
assert figures["device_memory_bytes"] > 10_000_000, figures
assert figures["reserved_memory_bytes"] is None, figures
"""
    subprocess.run([sys.executable, "-c", program], check=True)
