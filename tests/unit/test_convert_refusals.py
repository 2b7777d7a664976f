"""What cannot be converted is one line that names what is wrong, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from release_checkpoint import DEPTH, make_release, write_tokenizer
from safetensors.torch import save_file
from tiny_models import llama_teacher

from matvlm import cli
from matvlm.convert.run import convert
from matvlm.errors import UserError
from matvlm.models.folder import load_model, save_model
from matvlm.models.initialise import build_student

Q_PROJ = "language_model.model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def release(tmp_path):
    return make_release(tmp_path / "release", replaced=(0, 2))


def refused(tmp_path, source, **options) -> str:
    """The line with which a conversion ends, after checking that it wrote nothing."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(source, tmp_path / "out", **options)
    assert sorted(tmp_path.rglob("*")) == before
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llava_next"}, ["model_type", "'llava_next'", "tinyllava"]),
        ({"model_type": None}, ["model_type", "None", "tinyllava"]),
        ({"text_config": {"model_type": "gemma"}}, ["text_config.model_type", "'gemma'", "'phi' or 'qwen2'"]),
        ({"text_config": None}, ["text_config: missing"]),
        (
            {"vision_config": {"model_type": "clip_vision_model"}},
            ["vision_config.model_type", "siglip_vision_model"],
        ),
        ({"connector_type": "resampler"}, ["connector_type", "'resampler'", "'mlp2x_gelu'"]),
        ({"vision_feature_select_strategy": "full"}, ["select_strategy", "'patch' or 'cls_patch'"]),
        ({"vision_feature_layer": [1, 2]}, ["vision_feature_layer", "[1, 2]"]),
        ({"vision_feature_layer": -5}, ["vision_feature_layer", "-5", "-4 to 3"]),
        ({"model_type": ["tinyllava"]}, ["model_type"]),
        ({"tokenizer_padding_side": "up"}, ["tokenizer_padding_side", "'up'"]),
    ],
)
def test_another_family(release, tmp_path, change, words):
    release.config |= change
    text = refused(tmp_path, release.write())
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("text_config", {"num_hidden_layers": 3}, ["n_layer", "4", "3"]),
        ("text_config", {"hidden_size": "wide"}, ["text_config", "hidden_size"]),
        ("text_config", {"hidden_size": 33}, ["num_attention_heads", "divide"]),
        (
            "text_config",
            {"vocab_size": 400},
            ["3 tensors misshapen", "embed_tokens.weight [320, 32], not [400, 32]"],
        ),
        ("text_config", {"rope_theta": -1.0}, ["rope_theta", "above 0"]),
        ("text_config", {"partial_rotary_factor": 1.5}, ["partial_rotary_factor", "up to 1"]),
        ("text_config", {"vocab_size": 0}, ["vocab_size", "0", "above 0"]),
        ("vision_config", {"num_hidden_layers": 5}, ["vision_config.num_hidden_layers", "5", "3 layers"]),
        ("vision_config", {"image_size": 32}, ["position_embedding.weight [16, 24], not [64, 24]"]),
        ("vision_config", {"hidden_act": "no_such"}, ["describes no model", "no_such"]),
    ],
)
def test_sizes_that_disagree(release, tmp_path, part, change, words):
    release.config[part] |= change
    text = refused(tmp_path, release.write())
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attn_layers": [0, 1, 3]}, ["attn_layers", "disagrees", "layers 0"]),
        ({"attn_layers": [1]}, ["attn_layers", "disagrees", "layers 3"]),
        ({"attn_layers": [1, 3, 4]}, ["attn_layers", "0 to 3"]),
        ({"attn_layers": [0, 1, 2, 3]}, ["attn_layers", "all 4"]),
        ({"bidirectional": True}, ["bidirectional", "True", "False"]),
        ({"is_bias": True}, ["4 tensors missing", "mamba.in_proj.bias"]),
        ({"d_xb": 16}, ["d_xb", "16", "32"]),
        ({"rms_norm_eps": 1e-6}, ["rms_norm_eps", "1e-06", "1e-05"]),
        ({"expand": 3}, ["expand", "not known"]),
        ({"ssm_cfg": {"ngroups": 4, "d_state": 16}}, ["ssm_cfg.ngroups", "4", "2"]),
        ({"ssm_cfg": {"ngroups": 2}}, ["ssm_cfg.d_state", "missing"]),
        ({"ssm_cfg": {"D_has_hdim": True}}, ["ssm_cfg", "D_has_hdim"]),
        ({"ssm_cfg": None}, ["ssm_cfg", "None"]),
    ],
)
def test_a_layout_that_disagrees(release, tmp_path, change, words):
    release.mamba |= change
    text = refused(tmp_path, release.write())
    assert "mamba_config.json" in text or "missing" in text
    assert all(word in text for word in words), text


def test_no_layout_beside_mixers(release, tmp_path):
    (release.write() / "mamba_config.json").unlink()
    text = refused(tmp_path, release.folder)
    assert "mamba_config.json: missing" in text
    assert "layers 0, 2" in text


def test_depth_of_a_teacher(tmp_path):
    release = make_release(tmp_path / "release")
    release.config["text_config"]["num_hidden_layers"] = DEPTH + 2
    assert "text_config.num_hidden_layers: is 6, but there are tensors of 4 layers" in refused(
        tmp_path, release.write()
    )


def test_tensors_missing_unknown_and_misshapen_come_in_one_line(release, tmp_path):
    del release.tensors["connector._connector.2.bias"]
    release.tensors["connector._connector.4.bias"] = torch.zeros(2)
    release.tensors[Q_PROJ] = torch.zeros(32, 31)
    text = refused(tmp_path, release.write())
    assert "1 tensors missing: connector._connector.2.bias" in text
    assert "1 tensors not known: connector._connector.4.bias" in text
    assert f"1 tensors misshapen: {Q_PROJ} [32, 31], not [32, 32]" in text


def test_half_a_pooling_head_and_a_wrong_buffer(release, tmp_path):
    tower = "vision_tower._vision_tower.vision_model."
    probe = release.tensors.pop(f"{tower}head.probe")
    assert f"missing: {tower}head.probe" in refused(tmp_path, release.write())
    release.tensors[f"{tower}head.probe"] = probe
    release.tensors[f"{tower}embeddings.position_ids"] = torch.arange(16).flip(0)
    assert "position_ids: not what config.json gives" in refused(tmp_path, release.write())


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.int8, ["I8", "allowed: F32, F16, BF16"]),
        (torch.float64, ["F64", "allowed: F32, F16, BF16"]),
        (torch.float16, ["several types: F16", "F32", "--dtype"]),
    ],
)
def test_wrong_type(release, tmp_path, dtype, words):
    release.tensors[Q_PROJ] = release.tensors[Q_PROJ].to(dtype)
    text = refused(tmp_path, release.write())
    assert all(word in text for word in words), text


def test_numbers_too_large_for_the_type_wanted(release, tmp_path):
    release.tensors[Q_PROJ][0, 0] = 1e6
    assert "too large for float16" in refused(tmp_path, release.write(), dtype="float16")


def index_of(folder) -> dict:
    return json.loads((folder / "model.safetensors.index.json").read_text())


def drop_shard(folder) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def cut_shard(folder) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_index(folder) -> None:
    (folder / "model.safetensors.index.json").unlink()


def escape(folder) -> None:
    index = index_of(folder)
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder.parent / "other.safetensors")
    index["weight_map"][Q_PROJ] = "../other.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def misplace(folder) -> None:
    index = index_of(folder)
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"][Q_PROJ] = files[(files.index(index["weight_map"][Q_PROJ]) + 1) % 3]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def promise(folder) -> None:
    index = index_of(folder)
    index["weight_map"]["more"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def strange_index(folder) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')


def broken_index(folder) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def add_file(folder) -> None:
    save_file({"x": torch.zeros(1)}, folder / "more.safetensors")


def twice(folder) -> None:
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop_shard, ["1 of 3 shards missing: model-00002-of-00003.safetensors"]),
        (cut_shard, ["model-00002-of-00003.safetensors: cut short"]),
        (drop_index, ["model.safetensors.index.json: missing"]),
        (escape, ["'../other.safetensors'", "no name of a .safetensors file of this folder"]),
        (misplace, ["weight_map", Q_PROJ]),
        (promise, ["in no file: more"]),
        (strange_index, ["weight_map: must map"]),
        (broken_index, ["not JSON"]),
        (add_file, ["not in model.safetensors.index.json: more.safetensors"]),
        (twice, ["not in model.safetensors.index.json: model.safetensors"]),
    ],
)
def test_half_a_set_of_shards(release, tmp_path, spoil, words):
    spoil(release.write(shards=3))
    text = refused(tmp_path, release.folder)
    assert all(word in text for word in words), text


def test_pickled_weights_are_not_read(release, tmp_path):
    (release.write() / "model.safetensors").rename(release.folder / "pytorch_model.bin")
    text = refused(tmp_path, release.folder)
    assert "only pickled weights" in text
    assert "safetensors.torch.save_file" in text
    (release.folder / "pytorch_model.bin").unlink()
    assert "no weights" in refused(tmp_path, release.folder)


def test_the_tokenizer(release, tmp_path):
    (release.write() / "vocab.json").unlink()
    assert "--tokenizer names a folder with the language model's, of 'microsoft/phi-2'" in refused(
        tmp_path, release.folder
    )
    (tmp_path / "words").mkdir()
    write_tokenizer(tmp_path / "words", 330)
    text = refused(tmp_path, release.folder, tokenizer=tmp_path / "words")
    assert "ids up to 330, but the embedding 320 rows" in text
    write_tokenizer(tmp_path / "words")
    convert(release.folder, tmp_path / "ours", tokenizer=tmp_path / "words")
    assert load_model(tmp_path / "ours").config.image_token_id == 261


def test_a_tied_head_that_differs(tmp_path):
    release = make_release(tmp_path / "release", "qwen2")
    embedding = release.tensors["language_model.model.embed_tokens.weight"]
    release.tensors["language_model.lm_head.weight"] = embedding + 1
    assert "tie_word_embeddings" in refused(tmp_path, release.write())
    release.tensors["language_model.lm_head.weight"] = embedding.clone()
    convert(release.write(), tmp_path / "ours")
    assert load_model(tmp_path / "ours").config.tie_word_embeddings


def test_places(release, tmp_path):
    source = release.write()
    assert "no such folder" in refused(tmp_path, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "config.json: missing" in refused(tmp_path, tmp_path / "empty")
    with pytest.raises(UserError, match="exists already"):
        convert(source, source)
    with pytest.raises(UserError, match="lies within"):
        convert(source, source / "ours")
    assert "--like: is for the way to the release" in refused(tmp_path, source, like=source)
    convert(source, tmp_path / "ours")
    assert "--tokenizer: is for checkpoints of the release" in refused(
        tmp_path, tmp_path / "ours", tokenizer=source
    )


def test_the_way_back(release, tmp_path):
    ours = tmp_path / "ours"
    convert(release.write(), ours)
    other = make_release(tmp_path / "other")
    other.config["text_config"] |= {"rope_theta": 1e6}
    text = refused(tmp_path, ours, like=other.write())
    assert "text_config.rope_parameters" in text
    other = make_release(tmp_path / "llama", "llama")
    assert "text_config.model_type: means 'llama'" in refused(tmp_path, ours, like=other.write())
    other = make_release(tmp_path / "select")
    other.config["vision_feature_select_strategy"] = "cls_patch"
    assert "means 'full', but the model to convert has 'default'" in refused(tmp_path, ours, like=other.write())
    other = make_release(tmp_path / "rows")
    other.config["text_config"]["vocab_size"] = 300
    assert "vocab_size: is 300, but the model to convert has 320" in refused(tmp_path, ours, like=other.write())
    weights = ours / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "altered" in refused(tmp_path, ours)


def test_the_command_says_it_in_one_line(release, tmp_path, capsys):
    release.config["connector_type"] = "qformer"
    assert cli.main(["convert", str(release.write()), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_a_hybrid_that_the_release_does_not_have(tmp_path, small):
    save_model(build_student(llama_teacher(small), "even-25", "attention", 0), tmp_path / "ours", {})
    error = refused(tmp_path, tmp_path / "ours")
    assert "text_config.model_type: is 'hybrid_llama'; allowed: phi, qwen2, llama, hybrid_phi" in error
