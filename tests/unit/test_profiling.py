"""Profiling: the loop that is timed is the model's own generation, and the figures are of what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from matvlm.config import EmbeddedTeacher, Profile, TeacherTraining, TextArchitecture, VisionArchitecture
from matvlm.data.processor import build_processor
from matvlm.data.tokenizer import build_tokenizer
from matvlm.errors import UserError
from matvlm.models.folder import save_model
from matvlm.models.initialise import build_student
from matvlm.profiling import measure, point, run
from matvlm.profiling.points import Point, points_of
from matvlm.provenance import COLUMNS, COST_COLUMNS
from matvlm.report.collect import collect_profile
from matvlm.teacher.build import build_teacher

IMAGE_TOKENS, LAYERS, WIDTH, HEADS, LONGEST = 16, 4, 32, 2, 256
SETTINGS = {"layouts": [], "prompt_tokens": [20], "generated_tokens": [16], "decode_steps": 4, "warmup_steps": 1}


@pytest.fixture(scope="module")
def teacher():
    tokenizer = build_tokenizer()
    training = TeacherTraining(
        steps=1, batch_size=1, micro_batch_size=1, learning_rate=1, warmup_steps=0, decay_steps=0
    )
    architecture = EmbeddedTeacher(
        source="train",
        vision=VisionArchitecture(
            image_size=64, patch_size=16, hidden_size=32, intermediate_size=64, layers=2, heads=2
        ),
        text=TextArchitecture(
            hidden_size=WIDTH,
            intermediate_size=64,
            layers=LAYERS,
            heads=HEADS,
            kv_heads=HEADS,
            max_position_embeddings=LONGEST,
        ),
        training=training,
    )
    ids = {"image": tokenizer.convert_tokens_to_ids("<image>"), "eos": tokenizer.eos_token_id}
    ids["pad"] = tokenizer.pad_token_id
    return build_teacher(architecture, vocab_size=len(tokenizer), token_ids=ids, seed=0).eval()


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "teacher"
    save_model(teacher, out, {}, processor=build_processor(build_tokenizer(), 64, 16))
    return out


@pytest.fixture(scope="module", params=["teacher", "even-25", "even-75", "even-100"])
def model(request, teacher):
    return teacher if request.param == "teacher" else build_student(teacher, request.param, "attention", 0)


def make_settings(**changed):
    return Profile.model_validate(SETTINGS | changed)


def test_the_measured_loop_is_generation(model, monkeypatch):
    """Prompt pass, cache filled in portions and single steps give the logits of `generate` on the same tokens."""
    model = build_double(model)
    monkeypatch.setattr(measure, "FILL_CHUNK", 7)
    inputs = measure.make_inputs(model, Point(prompt_tokens=20, generated_tokens=30, batch=2))
    cache, token = measure.prompt_pass(model, inputs)
    token = measure.fill(model, cache, token, inputs.following[:, :25])
    logits = []
    for _ in range(6):
        logits.append(measure.decode_step(model, cache, token)[:, -1])
        token = measure.next_token(logits[-1][:, None])

    ids = torch.cat([inputs.prompt, inputs.following[:, :25]], dim=1)
    expected = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=inputs.pixels,
        max_new_tokens=7,
        do_sample=False,
        eos_token_id=-1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    # generate's first logits are those after the last given token: ours begin one later.
    for found, wanted in zip(logits, expected.logits[1:], strict=True):
        torch.testing.assert_close(found, wanted.double(), rtol=0, atol=1e-6)


def build_double(model):
    """A copy in float64, so that only rounding of `generate`'s logits to float32 is left."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.double().eval()


def test_the_prompt_is_an_image_and_text(teacher):
    inputs = measure.make_inputs(teacher, Point(prompt_tokens=20, generated_tokens=5, batch=3))
    image = inputs.prompt == teacher.config.image_token_id
    assert image[:, :IMAGE_TOKENS].all()
    assert not image[:, IMAGE_TOKENS:].any()
    assert not (inputs.following == teacher.config.image_token_id).any()
    assert inputs.prompt.shape == (3, 20)
    assert inputs.following.shape == (3, 5)
    assert inputs.pixels.shape == (3, 3, 64, 64)


def test_steps_are_timed_at_the_stated_context(model, monkeypatch):
    """The timed steps are the last single ones of the generation, and end with its last token."""
    entered, step = [], measure.decode_step

    def watched(model, cache, ids):
        entered.append(ids.shape[1])
        return step(model, cache, ids)

    monkeypatch.setattr(measure, "decode_step", watched)
    point = Point(prompt_tokens=20, generated_tokens=16, batch=1)
    settings = make_settings(decode_steps=4, warmup_steps=2)
    measure.time_generation(model, measure.make_inputs(model, point), settings)
    assert entered[-6:] == [1] * 6
    assert point.prompt_tokens + sum(entered) == point.context


def test_points():
    settings = make_settings(prompt_tokens=[20, 30], generated_tokens=[16, 32], batch_sizes=[1, 2])
    points = points_of(settings)
    assert len(set(points)) == len(points) == 8
    assert Point(prompt_tokens=30, generated_tokens=16, batch=2) in points
    assert Point(prompt_tokens=30, generated_tokens=16, batch=2).context == 46


def test_times_of_one_measurement(model):
    found = measure.time_point(model, Point(prompt_tokens=20, generated_tokens=16, batch=2), make_settings())
    assert set(found) == set(run.TIMES)
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize(("layout", "replaced"), [(None, 0), ("even-25", 1), ("even-50", 2), ("even-75", 3)])
@pytest.mark.parametrize(("generated", "batch"), [(16, 1), (200, 1), (200, 3)])
def test_cache_bytes_are_keys_values_and_states(teacher, layout, replaced, generated, batch):
    """Attention keeps a key and a value a token, Mamba-2 one state and four inputs of its convolution."""
    model = build_student(teacher, layout, "attention", 0) if layout else teacher
    found = measure.measure_memory(model, Point(20, generated, batch))["cache_bytes"]
    attention = 2 * WIDTH * (20 + generated) * 4
    mamba = (WIDTH * (WIDTH // HEADS) + 3 * WIDTH * 4) * 4
    assert found == batch * ((LAYERS - replaced) * attention + replaced * mamba)


def test_hybrids_hold_less_at_a_long_context(teacher):
    held = [
        measure.measure_memory(build_student(teacher, layout, "attention", 0) if layout else teacher, point)
        for point in (Point(20, 200, 1),)
        for layout in (None, "even-25", "even-50", "even-75")
    ]
    caches = [figures["cache_bytes"] for figures in held]
    assert caches == sorted(caches, reverse=True)
    assert caches[0] > caches[1] + 0.2 * caches[0]
    assert [figures["weight_bytes"] for figures in held[1:]] == sorted(f["weight_bytes"] for f in held[1:])


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


def test_command_measures_teacher_and_hybrids_in_turn(folder, tmp_path, monkeypatch):
    """One point that fits, measured twice, and one of so many sequences that no memory suffices."""
    order, measured = [], run._in_own_process

    def watched(job):
        order.append((job.layout, job.point.batch, job.memory))
        return measured(job)

    monkeypatch.setattr(run, "_in_own_process", watched)
    settings = make_settings(layouts=["even-25"], batch_sizes=[1, 2**40], repeats=2).model_dump_json()
    out = tmp_path / "profile"
    words = ["--settings", settings, "--teacher", str(folder), "--device", "cpu", "--out", str(out)]
    assert run.main(words) == 0
    first = [(None, 1, True), ("even-25", 1, True), (None, 2**40, True), ("even-25", 2**40, True)]
    assert order == [*first, (None, 1, False), ("even-25", 1, False)]
    assert sorted(path.name for path in out.iterdir()) == ["even-25.json", "teacher.json"]
    document = json.loads((out / "even-25.json").read_text(encoding="utf-8"))
    assert document["step"] == "profile"
    assert set(document["provenance"]) == set(COLUMNS)
    assert set(document["cost"]) == set(COST_COLUMNS)
    fits, failed, again = document["rows"]
    assert [(row["batch"], row["repeat"]) for row in document["rows"]] == [(1, 0), (2**40, 0), (1, 1)]
    for row in (fits, again):
        assert (row["model"], row["layout"], row["runtime"]) == ("student", "even-25", "transformers")
        assert row["weight_bytes"] + row["cache_bytes"] < row["peak_memory_bytes"] < row["device_memory_bytes"]
    assert fits["prefill_s"] != again["prefill_s"]
    figures = (*run.TIMES, *run.MEMORY)
    assert [failed[name] for name in figures] == [None] * len(figures)
    lines = collect_profile(sorted(out.iterdir())).splitlines()
    assert len(lines) == 7
    assert "cache_bytes" in lines[0].split(",")


def test_every_measurement_has_a_process_of_its_own(folder):
    job = point.Job(make_settings(), folder, None, Point(20, 16, 1), "cpu", memory=True)
    with ThreadPoolExecutor(1) as pool:
        memory = [pool.submit(run._in_own_process, job).result()["peak_memory_bytes"] for _ in range(2)]
    # The CPU's peak is right only in a process that measures once.
    assert memory[0] == memory[1]


def test_a_bad_layout_is_one_line(folder, tmp_path, capsys):
    settings = make_settings(layouts=["0,99"]).model_dump_json()
    words = ["--settings", settings, "--teacher", str(folder), "--device", "cpu"]
    assert run.main([*words, "--out", str(tmp_path / "profile")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("profile")]
    assert [line for line in lines if line] == ["error: layer 99 is out of range; allowed: 0 to 3"]
    assert list(tmp_path.iterdir()) == []
