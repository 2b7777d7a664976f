"""Checkpoints of the release, in and out: the same numbers, the same bytes, nothing dropped in silence."""

from __future__ import annotations

import json

import pytest
import torch
from release_checkpoint import ROWS, VISION, make_release, read_tensors, reference_logits, write_tokenizer
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from matvlm import cli
from matvlm.convert import match, names
from matvlm.convert.release import read_release
from matvlm.convert.run import convert
from matvlm.data.processor import count_image_tokens, load_processor
from matvlm.models.folder import check_folder, load_model
from matvlm.models.initialise import build_student

BEFORE, AFTER = torch.tensor([5, 9, 2, 256, 7]), torch.tensor([257, 8, 1, 3, 200, 11, 4])
PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model, pixels=PIXELS) -> torch.Tensor:
    """Of the text before, the image and the text after, as LLaVA reads them."""
    image = torch.full((model.config.image_seq_length,), model.config.image_token_id)
    return model(input_ids=torch.cat([BEFORE, image, AFTER])[None], pixel_values=pixels).logits


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A Phi teacher of the release, and ours made of it."""
    folder = tmp_path_factory.mktemp("teacher")
    release = make_release(folder / "release")
    convert(release.write(), folder / "ours")
    return release, folder / "ours"


@pytest.mark.parametrize(
    ("family", "replaced", "bias"),
    [
        ("phi", (), False),
        ("phi", (0, 2), False),
        ("phi", (0, 1, 2, 3), False),
        ("phi", (3,), True),
        ("qwen2", (), False),
        ("llama", (), False),
    ],
)
def test_logits_are_those_of_the_same_tensors_put_together_by_hand(family, replaced, bias, tmp_path):
    release = make_release(tmp_path / "release", family, replaced, bias=bias)
    report = convert(release.write(shards=3), tmp_path / "ours", limit=60_000)
    assert report.files > 2
    model = load_model(tmp_path / "ours")
    assert getattr(model.config.text_config, "mamba_layers", []) == list(replaced)
    expected = reference_logits(release, BEFORE, AFTER, PIXELS)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 1

    automatic = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(logits(automatic), logits(model))


@pytest.mark.parametrize(
    ("family", "replaced", "head"),
    [("phi", (), True), ("phi", (0, 2), True), ("phi", (1,), False), ("qwen2", (), 1)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_there_and_back_is_the_same_to_the_byte(family, replaced, head, dtype, tmp_path):
    release = make_release(tmp_path / "release", family, replaced, dtype, bool(head))
    release.write(shards=2)
    convert(tmp_path / "release", tmp_path / "ours")
    assert load_model(tmp_path / "ours").dtype == dtype
    report = convert(tmp_path / "ours", tmp_path / "back", like=tmp_path / "release", limit=50_000)
    assert report.files > 1
    assert same(read_tensors(tmp_path / "back"), release.tensors)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    changed = {"auto_map", "architectures", "torch_dtype"}
    assert {key: value for key, value in config.items() if key not in changed} == {
        key: value for key, value in release.config.items() if key not in changed
    }
    assert config["architectures"] == [f"{'Hybrid' if replaced else ''}TinyLlavaForConditionalGeneration"]
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    mamba = tmp_path / "back" / "mamba_config.json"
    assert (json.loads(mamba.read_text()) if mamba.exists() else None) == release.mamba
    assert (tmp_path / "back" / "vocab.json").read_bytes() == (tmp_path / "release" / "vocab.json").read_bytes()
    check_folder(tmp_path / "back")


def test_back_without_a_checkpoint_alike_and_in_again(teacher, tmp_path):
    """The configuration then is written from ours, without the pooling head."""
    release, ours = teacher
    convert(ours, tmp_path / "back")
    expected = {name: tensor for name, tensor in release.tensors.items() if name not in names.POOLING_HEAD}
    assert same(read_tensors(tmp_path / "back"), expected)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    text = config["text_config"]
    assert (text["rope_theta"], text["partial_rotary_factor"], text["rope_scaling"]) == (5000.0, 0.5, None)
    assert config["vision_feature_select_strategy"] == "patch"
    assert config["vision_config"]["vision_use_head"] is False
    convert(tmp_path / "back", tmp_path / "again")
    assert torch.equal(logits(load_model(tmp_path / "again")), logits(load_model(ours)))


def test_a_student_made_of_a_converted_teacher_goes_back_too(teacher, tmp_path):
    """Through our own initialisation: it keeps the head's bias, and its layout is written down."""
    from matvlm.models.folder import save_model

    release, ours = teacher
    student = build_student(load_model(ours), "even-50", "attention", 0)
    assert student.lm_head.bias is not None
    save_model(student, tmp_path / "student", {}, like=ours)
    assert torch.equal(logits(load_model(tmp_path / "student")), logits(student))
    convert(tmp_path / "student", tmp_path / "back", like=release.folder)
    mamba = json.loads((tmp_path / "back" / "mamba_config.json").read_text())
    assert mamba == make_release(tmp_path, replaced=(0, 2)).mamba
    tensors = read_tensors(tmp_path / "back")
    query = release.tensors["language_model.model.layers.2.self_attn.q_proj.weight"]
    size = query.shape[0]
    assert torch.equal(tensors["language_model.model.layers.2.mamba.in_proj.weight"][3 * size : 4 * size], query)
    convert(tmp_path / "back", tmp_path / "again")
    assert torch.equal(logits(load_model(tmp_path / "again")), logits(student))


def test_a_teacher_without_a_bias_in_the_head_gets_zeros(small, tmp_path):
    report = convert(small / "teacher", tmp_path / "back")
    assert [line.partition(":")[0] for line in report.added] == ["language_model.lm_head.bias"]
    assert not read_tensors(tmp_path / "back")["language_model.lm_head.bias"].any()
    convert(tmp_path / "back", tmp_path / "again")
    before, after = load_model(small / "teacher"), load_model(tmp_path / "again")
    size = before.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size)
    ids = torch.tensor([[3] * before.config.image_seq_length + [9, 8, 7]])
    with torch.no_grad():
        assert torch.equal(*(model(input_ids=ids, pixel_values=pixels).logits for model in (before, after)))


def test_what_has_no_counterpart_is_named(tmp_path, capsys):
    release = make_release(tmp_path / "release")
    frequencies = 1 / 5000.0 ** (torch.arange(0, 8, 2) / 8)
    buffers = {
        "vision_tower._vision_tower.vision_model.embeddings.position_ids": torch.arange(16)[None],
        "language_model.model.layers.1.self_attn.rotary_emb.inv_freq": frequencies,
    }
    release.tensors |= buffers
    assert cli.main(["convert", str(release.write()), "--out", str(tmp_path / "ours")]) == 0
    lines = capsys.readouterr().out.splitlines()
    left = [line.removeprefix("left out: ") for line in lines if line.startswith("left out: ")]
    assert sorted(left) == sorted([*names.POOLING_HEAD, *buffers])
    assert len(names.POOLING_HEAD) == 11
    assert lines[-1].startswith(f"{tmp_path / 'ours'}: 118 tensors, 0.00 GB in 1 file")
    provenance = check_folder(tmp_path / "ours")
    assert sorted(provenance["left_out"]) == sorted(left)
    assert provenance["source"]["name"] == "release"
    assert cli.main(["check", str(tmp_path / "ours")]) == 0
    assert "teacher" in capsys.readouterr().out


@pytest.mark.parametrize(("select", "tokens"), [("patch", 728), ("cls_patch", 729)])
def test_image_tokens_at_full_resolution(select, tokens, tmp_path):
    """384 pixels in patches of 14: 729 features, of which the release drops the first."""
    full = VISION | {"image_size": 384, "patch_size": 14}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("release_checkpoint.VISION", full)
        release = make_release(tmp_path / "release")
        release.config["vision_feature_select_strategy"] = select
        convert(release.write(), tmp_path / "ours")
        model, processor = load_model(tmp_path / "ours"), load_processor(tmp_path / "ours")
        assert model.config.image_seq_length == count_image_tokens(processor) == tokens
        pixels = torch.randn(1, 3, 384, 384)
        expected = reference_logits(release, BEFORE, AFTER, pixels)
    torch.testing.assert_close(logits(model, pixels), expected, rtol=1e-4, atol=1e-4)


def test_the_image_token_takes_a_spare_row(teacher):
    _, ours = teacher
    processor = load_processor(ours)
    model = load_model(ours)
    assert model.config.text_config.vocab_size == ROWS
    assert processor.image_token_id == model.config.image_token_id == 261
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id == 258
    ids = processor.tokenizer("USER: <image>\nthe   t<|endoftext|>")["input_ids"]
    assert ids[-8:] == [220, 261, 198, 83, 257, 260, 83, 258]


def test_a_full_vocabulary_gets_one_row(tmp_path):
    release = make_release(tmp_path / "release", "llama")
    release.write()
    write_tokenizer(tmp_path / "release", ROWS)
    report = convert(tmp_path / "release", tmp_path / "ours")
    assert any(f"row {ROWS} " in line for line in report.added)
    model = load_model(tmp_path / "ours")
    assert model.config.image_token_id == ROWS == model.lm_head.weight.shape[0] - 1
    found = logits(model)
    torch.testing.assert_close(
        found[..., :ROWS], reference_logits(release, BEFORE, AFTER, PIXELS), rtol=1e-4, atol=1e-4
    )
    assert found.softmax(-1)[..., ROWS].max() < 1 / ROWS
    convert(tmp_path / "ours", tmp_path / "back", like=tmp_path / "release")
    assert same(read_tensors(tmp_path / "back"), release.tensors)


def test_another_type(tmp_path):
    release = make_release(tmp_path / "release")
    convert(release.write(), tmp_path / "ours", dtype="bfloat16")
    assert load_model(tmp_path / "ours").dtype == torch.bfloat16
    release.tensors["connector._connector.0.bias"] = release.tensors["connector._connector.0.bias"].half()
    convert(release.write(tmp_path / "mixed"), tmp_path / "one", dtype="float32")
    assert load_model(tmp_path / "one").dtype == torch.float32


def test_files_are_bounded(tmp_path):
    release = make_release(tmp_path / "release")
    report = convert(release.write(), tmp_path / "ours", limit=45_000)
    sizes = [path.stat().st_size for path in (tmp_path / "ours").glob("*.safetensors")]
    assert len(sizes) == report.files
    assert max(sizes) < 45_000 + 10_000  # the header comes on top
    with safe_open(tmp_path / "ours" / f"model-00001-of-{report.files:05d}.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def full_size() -> dict[str, tuple[int, ...]]:
    """Every tensor of TinyLLaVA-Phi-2-SigLIP-3.1B but the pooling head, written out from the layout."""
    text, tower = "language_model.model.", "vision_tower._vision_tower.vision_model."
    shapes = {
        f"{text}embed_tokens.weight": (51200, 2560),
        "language_model.lm_head.weight": (51200, 2560),
        "language_model.lm_head.bias": (51200,),
        f"{tower}embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        f"{tower}embeddings.patch_embedding.bias": (1152,),
        f"{tower}embeddings.position_embedding.weight": (729, 1152),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    norm(f"{text}final_layernorm", 2560)
    norm(f"{tower}post_layernorm", 1152)
    linear("connector._connector.0", 2560, 1152)
    linear("connector._connector.2", 2560, 2560)
    for i in range(32):
        for part in ("q_proj", "k_proj", "v_proj", "dense"):
            linear(f"{text}layers.{i}.self_attn.{part}", 2560, 2560)
        linear(f"{text}layers.{i}.mlp.fc1", 10240, 2560)
        linear(f"{text}layers.{i}.mlp.fc2", 2560, 10240)
        norm(f"{text}layers.{i}.input_layernorm", 2560)
    for i in range(27):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{tower}encoder.layers.{i}.self_attn.{part}", 1152, 1152)
        linear(f"{tower}encoder.layers.{i}.mlp.fc1", 4304, 1152)
        linear(f"{tower}encoder.layers.{i}.mlp.fc2", 1152, 4304)
        norm(f"{tower}encoder.layers.{i}.layer_norm1", 1152)
        norm(f"{tower}encoder.layers.{i}.layer_norm2", 1152)
    return shapes


@pytest.mark.parametrize("replaced", [(), tuple(range(0, 32, 4))])
def test_names_and_shapes_at_full_size(replaced, tmp_path):
    release = make_release(tmp_path, replaced=replaced)
    sizes = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32}
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    release.config["text_config"] |= sizes | {"vocab_size": 51200, "partial_rotary_factor": 0.4}
    release.config["vision_config"] |= tower | {"image_size": 384, "patch_size": 14}
    expected = full_size()
    if replaced:
        layers = [index for index in range(32) if index not in replaced]
        release.mamba |= {"d_model": 2560, "d_inner": 2560, "d_xb": 2560, "intermediate_size": 10240}
        release.mamba |= {"n_layer": 32, "attn_layers": layers}
        release.mamba["ssm_cfg"] = {"expand": 1, "ngroups": 32, "d_state": 80}
        (tmp_path / "mamba_config.json").write_text(json.dumps(release.mamba))
        mixer = {
            "in_proj.weight": (4 * 2560 + 32, 2560),
            "conv1d.weight": (3 * 2560, 1, 4),
            "conv1d.bias": (3 * 2560,),
            "norm.weight": (2560,),
            "out_proj.weight": (2560, 2560),
            **dict.fromkeys(("A_log", "D", "dt_bias"), (32,)),
        }
        for index in replaced:
            prefix = f"language_model.model.layers.{index}."
            expected = {key: value for key, value in expected.items() if f"{prefix}self_attn" not in key}
            expected |= {f"{prefix}mamba.{name}": shape for name, shape in mixer.items()}
    (tmp_path / "config.json").write_text(json.dumps(release.config))
    config, _ = read_release(tmp_path)
    assert match.release_shapes(config, tmp_path) == expected
    assert config.image_seq_length == 728
    assert config.text_config.rope_parameters["partial_rotary_factor"] == 0.4
    ours = match.our_shapes(config, tmp_path)
    assert {names.in_release(name) for name in ours} == expected.keys()
    assert set(match.head_shapes(config.vision_config)) == set(names.POOLING_HEAD)
