"""The teacher: built to the sizes configured, taken over only as it is described, trained and resumed."""

from __future__ import annotations

import csv
import io
import json
import shutil
from functools import partialmethod

import numpy as np
import pytest
import torch
import yaml
from test_config import RANDOM
from torch._dynamo.utils import counters
from transformers import PhiConfig

from matvlm.config import EmbeddedTeacher, RandomTeacher
from matvlm.data.dataset import load_split
from matvlm.data.processor import load_processor
from matvlm.models.folder import load_model
from matvlm.models.forward import vision_features
from matvlm.models.initialise import build_student
from matvlm.models.llava import LlavaHeadBiasConfig, new_model
from matvlm.provenance import file_hash
from matvlm.teacher import fetch, train
from matvlm.teacher.architecture import llava_config
from matvlm.teacher.build import build_teacher, teacher_config
from matvlm.teacher.task import mixed_order

IDS = {"image": 3, "eos": 0, "pad": 1}


@pytest.fixture
def settings(debug):
    def make(**changes) -> EmbeddedTeacher:
        return EmbeddedTeacher.model_validate(debug.teacher.model_dump() | changes)

    return make


@pytest.mark.parametrize(("strategy", "tokens"), [("full", 16), ("default", 15)])
def test_sizes_are_those_configured(settings, strategy, tokens):
    made = settings(vision_feature_select_strategy=strategy)
    config = teacher_config(made, vocab_size=40, token_ids=IDS)
    assert made.image_tokens == config.image_seq_length == tokens
    vision, text = config.vision_config, config.text_config
    assert (vision.image_size, vision.patch_size, vision.hidden_size) == (64, 16, 32)
    assert (vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size) == (2, 2, 64)
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (32, 64, 4)
    assert (text.num_attention_heads, text.num_key_value_heads, text.vocab_size) == (2, 2, 40)
    assert text.rope_parameters["partial_rotary_factor"] == 0.4
    assert (config.image_token_id, text.eos_token_id, text.pad_token_id) == (3, 0, 1)
    assert made.depth == 4


@pytest.mark.parametrize("bias", [True, False])
def test_an_architecture_alone(bias):
    settings = RandomTeacher.model_validate(yaml.safe_load(RANDOM)["teacher"] | {"head_bias": bias})
    config = llava_config(settings)
    assert (config.model_type == LlavaHeadBiasConfig.model_type) == bias
    assert config.text_config.hidden_act == PhiConfig().hidden_act
    assert (config.text_config.max_position_embeddings, config.text_config.num_hidden_layers) == (256, 32)
    model = new_model(config)
    assert (model.lm_head.bias is not None) == bias
    # Two patches of 14 a side fit into 30 pixels, and the first of the four is dropped.
    image = vision_features(model, torch.zeros(1, 3, 30, 30))
    assert image.shape[1] == settings.image_tokens == config.image_seq_length == 3
    ids = torch.tensor([[config.image_token_id] * 3 + [5, 6]])
    assert model(input_ids=ids, pixel_values=torch.zeros(1, 3, 30, 30)).logits.shape == (1, 5, 64)
    student = build_student(model, "even-25", "attention", seed=0)
    assert (student.lm_head.bias is not None) == bias
    assert student.config.text_config.mamba_layers == [0, 4, 8, 12, 16, 20, 24, 28]


def test_shapes_and_seed(settings):
    one, same, other = (build_teacher(settings(), vocab_size=40, token_ids=IDS, seed=seed) for seed in (0, 0, 1))
    assert one.lm_head.weight.shape == one.get_input_embeddings().weight.shape == (40, 32)
    assert one.lm_head.weight is not one.get_input_embeddings().weight
    assert one.model.multi_modal_projector.linear_1.weight.shape == (32, 32)
    assert one.dtype == torch.float32
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


@pytest.fixture
def shipped(small, tmp_path):
    return shutil.copytree(small / "teacher", tmp_path / "shipped")


def take(settings, folder, out, **changes) -> int:
    made = settings(source="shipped", path=str(folder), **changes)
    return fetch.main(["--settings", made.model_dump_json(), "--out", str(out)])


def refused(capsys, status, out) -> str:
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not out.exists()
    return error


def test_a_shipped_teacher_is_taken_over_whole(settings, shipped, tmp_path):
    assert take(settings, shipped, tmp_path / "out") == 0
    files = {path.name: file_hash(path) for path in shipped.iterdir()}
    assert {path.name: file_hash(path) for path in (tmp_path / "out").iterdir()} == files
    assert "model.safetensors" in files
    load_model(tmp_path / "out")


def test_altered_weights(settings, shipped, tmp_path, capsys):
    weights = shipped / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    error = refused(capsys, take(settings, shipped, tmp_path / "out"), tmp_path / "out")
    assert str(weights) in error
    assert "altered" in error


def test_weights_that_lack_a_tensor_though_their_hash_is_right(settings, shipped, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    weights = shipped / "model.safetensors"
    tensors = load_file(weights)
    del tensors[min(tensors)]
    save_file(tensors, weights, metadata={"format": "pt"})
    record = json.loads((shipped / "provenance.json").read_text())
    record["files"]["model.safetensors"] = file_hash(weights)
    (shipped / "provenance.json").write_text(json.dumps(record))
    assert "missing keys" in refused(capsys, take(settings, shipped, tmp_path / "out"), tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("text", "layers", 5, ["text_config.num_hidden_layers is 4", "asks for 5"]),
        ("text", "intermediate_size", 128, ["text_config.intermediate_size is 64", "asks for 128"]),
        ("text", "kv_heads", 1, ["text_config.num_key_value_heads is 2", "asks for 1"]),
        ("vision", "patch_size", 8, ["vision_config.patch_size is 16", "asks for 8"]),
    ],
)
def test_another_architecture(settings, debug, shipped, tmp_path, capsys, part, key, value, words):
    changes = {part: getattr(debug.teacher, part).model_dump() | {key: value}}
    error = refused(capsys, take(settings, shipped, tmp_path / "out", **changes), tmp_path / "out")
    for word in [*words, "config.json", "teacher.source"]:
        assert word in error


def test_a_student_is_no_teacher(settings, small, tmp_path, capsys):
    student = small / "init" / "attention-even-50"
    error = refused(capsys, take(settings, student, tmp_path / "out"), tmp_path / "out")
    assert "text_config." in error


def test_a_folder_that_is_not_there(settings, tmp_path, capsys):
    error = refused(capsys, take(settings, tmp_path / "none", tmp_path / "out"), tmp_path / "out")
    assert str(tmp_path / "none") in error


def trained(settings, small, out, **training) -> list[dict]:
    """Train and read the log, without the wall time."""
    made = settings(training=settings().training.model_dump() | training)
    words = ["--settings", made.model_dump_json(), "--max-length", "448", "--device", "cpu", "--out", str(out)]
    words += ["--data", str(small / "data" / "distill"), "--val", str(small / "data" / "val")]
    assert train.main([*words, "--state", str(out.with_name("state"))]) == 0
    rows = csv.DictReader(io.StringIO((out / "log.csv").read_text()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_two_steps_of_training(settings, small, tmp_path, capsys):
    rows = trained(settings, small, tmp_path / "a" / "out", steps=2)
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["val_ce"]) > 0 for row in rows)
    assert "easy_vqa_yesno" in capsys.readouterr().err
    model = load_model(tmp_path / "a" / "out")
    start = build_teacher(
        settings(), vocab_size=model.config.text_config.vocab_size, token_ids=IDS, seed=settings().training.seed
    )
    before = start.state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    for part in ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head."):
        assert any(name.startswith(part) for name in moved), part
    assert len(load_processor(tmp_path / "a" / "out").tokenizer) == model.config.text_config.vocab_size
    record = json.loads((tmp_path / "a" / "out" / "provenance.json").read_text())
    assert record["step"] == "train_teacher"
    assert record["provenance"]["data_hash"]
    # The same again, and, as the run is finished, from its last checkpoint too, also with smaller micro-batches.
    assert trained(settings, small, tmp_path / "b" / "out", steps=2) == rows
    weights = [(tmp_path / run / "out" / "model.safetensors").read_bytes() for run in "ab"]
    assert weights[0] == weights[1]
    assert trained(settings, small, tmp_path / "a" / "out", steps=2, micro_batch_size=1) == rows
    assert (tmp_path / "a" / "out" / "model.safetensors").read_bytes() == weights[0]


def test_compiled_layers_train_as_plain_ones(settings, small, tmp_path, monkeypatch):
    """Dynamo traces them, all into one graph; what a compiler makes of that is its own affair."""
    counters.clear()
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    plain = trained(settings, small, tmp_path / "plain" / "out", steps=3)
    assert not counters["stats"]
    assert trained(settings, small, tmp_path / "compiled" / "out", steps=3, compile=True) == plain
    assert 0 < counters["stats"]["unique_graphs"] < settings().text.layers
    assert not counters["graph_break"]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_batches_have_their_share_of_easy_vqa(debug, small, share):
    data = load_split(small / "data" / "distill", load_processor(small / "teacher"), 448)
    order = mixed_order(data, debug.teacher.training.model_copy(update={"easy_vqa_share": share, "batch_size": 8}))
    for step in range(4):
        rows = order(step)
        assert len(rows) == 8
        assert int(data.flippable[rows].sum()) == 8 * share
    assert np.array_equal(order(1), order(1))
