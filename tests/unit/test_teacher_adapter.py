"""A language model that is given becomes a teacher: trained in two stages, kept in a few files, put together."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_teacher_smollm2 import TOKENS, save_language

from matvlm.config import JoinedTeacher
from matvlm.models.folder import load_model
from matvlm.provenance import file_hash
from matvlm.teacher import adapt, assemble
from matvlm.teacher.adapter import adapter_weights, add_adapters, apply_adapter, save_adapter, vision_weights
from matvlm.teacher.join import join_given, planned_config
from matvlm.teacher.task import _answers

STAGE = {
    "steps": 2,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "decay_steps": 0,
    "validate_every": 2,
}
SETTINGS = {
    "source": "smollm2",
    "vision": {
        "image_size": 64,
        "patch_size": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 2,
        "heads": 2,
    },
    "text": {
        "hidden_size": 96,
        "intermediate_size": 64,
        "layers": 2,
        "heads": 3,
        "kv_heads": 1,
        "vocab_size": len(TOKENS),
        "max_position_embeddings": 256,
    },
    "training": {"align": STAGE, "tune": STAGE, "lora": {"rank": 2, "alpha": 4}},
}


def settings(**changes) -> JoinedTeacher:
    return JoinedTeacher.model_validate(SETTINGS | changes)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return save_language(tmp_path_factory.mktemp("language") / "tied", tied=True)


@pytest.fixture
def adapter(language, tmp_path):
    """A folder whose adapters do something, and the model that it is of."""
    model, _ = join_given(settings(), language, seed=1)
    adapted = add_adapters(model, settings().training.lora, seed=0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight).bfloat16())
    save_adapter(model, adapted, tmp_path / "adapter", {"step": "x"}, {"log.csv": "step\n"})
    return tmp_path / "adapter", model


def train(language, small, out, **changes) -> int:
    words = ["--settings", settings(**changes).model_dump_json(), "--max-length", "448", "--device", "cpu"]
    words += ["--language", str(language), "--data", str(small / "data/distill"), "--val", str(small / "data/val")]
    return adapt.main([*words, "--state", str(out.with_name("state")), "--out", str(out)])


def test_two_stages_train_what_they_should(language, small, tmp_path, capsys):
    out = tmp_path / "adapter"
    assert train(language, small, out) == 0
    assert "adapter_config.json" in {path.name for path in out.iterdir()}
    assert sorted(path.name for path in out.glob("*.csv")) == ["align.csv", "tune.csv"]
    start, _ = join_given(settings(), language, seed=0)
    words = ["--settings", settings().model_dump_json(), "--language", str(language), "--adapter", str(out)]
    assert assemble.main([*words, "--out", str(tmp_path / "teacher")]) == 0
    teacher = load_model(tmp_path / "teacher")
    before = dict(start.named_parameters())
    moved = {name for name, weight in teacher.named_parameters() if not torch.equal(weight, before[name])}
    for part in ("vision_tower.", "multi_modal_projector.", "layers.0.self_attn.k_proj", "layers.1.mlp.down_proj"):
        assert any(part in name for name in moved), part
    assert not any("norm" in name or "embed_tokens" in name for name in moved if "language_model" in name)
    assert teacher.lm_head.weight is teacher.get_input_embeddings().weight
    record = json.loads((tmp_path / "teacher/provenance.json").read_text())
    assert record["made_of"]["adapter"]["step"] == "train_adapter"
    assert record["cost"].keys() == record["made_of"]["adapter"]["cost"].keys()
    # Finished stages are not trained again, and make the same files.
    again = tmp_path / "again" / "adapter"
    again.parent.mkdir()
    shutil.move(tmp_path / "state", tmp_path / "again" / "state")
    capsys.readouterr()
    assert train(language, small, again) == 0
    assert capsys.readouterr().err.count("resumed at step 2 of 2") == 2
    for name in ("vision.safetensors", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_folder_gives_the_model_back(adapter, language):
    folder, model = adapter
    assert not any("embed" in name for name in load_file(folder / "adapter_model.safetensors"))
    again, processor = join_given(settings(), language, seed=2)
    assert apply_adapter(again, folder, settings().training.lora)["step"] == "x"
    ids = torch.tensor([[processor.image_token_id] * 16 + [5, 9, 7]])
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, _ = join_given(settings(), language, seed=1)
    with torch.no_grad():
        found, wanted, without = (
            m.eval()(input_ids=ids, pixel_values=pixels).logits for m in (again, model, plain)
        )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, without, atol=1e-2)
    assert not any(weight.requires_grad for weight in again.parameters())


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("vision.safetensors", "lacks", ["lacks model.", "one of 1 such"]),
        ("adapter_model.safetensors", "more", ["params.yaml does not ask for", "new"]),
        ("adapter_model.safetensors", "shape", ["is (", "params.yaml asks for ("]),
    ],
)
def test_other_tensors_are_refused(adapter, language, tmp_path, capsys, file, change, words):
    folder, _ = adapter
    tensors = load_file(folder / file)
    first = min(tensors)
    if change == "lacks":
        del tensors[first]
    elif change == "more":
        tensors["new"] = torch.zeros(1)
    else:
        tensors[first] = torch.zeros(1, 1)
    save_file(tensors, folder / file)
    record = json.loads((folder / "provenance.json").read_text())
    record["files"][file] = file_hash(folder / file)
    (folder / "provenance.json").write_text(json.dumps(record))
    given = ["--settings", settings().model_dump_json(), "--language", str(language), "--adapter", str(folder)]
    assert assemble.main([*given, "--out", str(tmp_path / "teacher")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder / file}: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not (tmp_path / "teacher").exists()


def test_a_language_model_of_another_size(language, small, tmp_path, capsys):
    text = SETTINGS["text"] | {"layers": 3}
    assert train(language, small, tmp_path / "adapter", text=text) == 2
    assert "num_hidden_layers is 2, but teacher.text asks for 3" in capsys.readouterr().err


def test_a_tower_that_was_trained_before(language, small, tmp_path, capsys):
    """The smallest teacher's tower is taken over, or refused where it is another."""
    model, _ = join_given(settings(), language, seed=0)
    adapt.take_tower(model, small / "teacher")
    taken = load_model(small / "teacher").model.vision_tower.state_dict()
    assert all(torch.equal(taken[name], found) for name, found in model.model.vision_tower.state_dict().items())
    training = SETTINGS["training"] | {"vision": str(small / "teacher")}
    vision = SETTINGS["vision"] | {"layers": 3}
    assert train(language, small, tmp_path / "adapter", training=training, vision=vision) == 2
    assert "vision_config.num_hidden_layers is 2, but teacher.vision asks for 3" in capsys.readouterr().err


def test_what_is_planned_is_what_is_made(language):
    model, _ = join_given(settings(), language, seed=0)
    planned = planned_config(settings())
    assert planned.image_seq_length == model.config.image_seq_length == settings().image_tokens == 16
    assert planned.text_config.vocab_size == model.config.text_config.vocab_size
    assert planned.text_config.num_key_value_heads == 1


def test_the_head_is_applied_where_an_answer_is_predicted(language):
    model, _ = join_given(settings(), language, seed=0)
    ids = torch.randint(3, 200, (2, 30), generator=torch.Generator().manual_seed(0))
    ids[:, 2:18] = model.config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[0, 20:22], labels[1, 0], labels[1, 29] = ids[0, 20:22], ids[1, 0], ids[1, 29]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, following, rows = _answers(model, {"input_ids": ids, "labels": labels, "pixel_values": pixels})
        whole = model(input_ids=ids, pixel_values=pixels).logits
    assert rows.tolist() == [0, 0, 1]  # the first token of a row is predicted by nothing
    assert following.tolist() == [*ids[0, 20:22].tolist(), int(ids[1, 29])]
    torch.testing.assert_close(
        logits, torch.stack([whole[0, 19], whole[0, 20], whole[1, 28]]), rtol=1e-4, atol=1e-4
    )


def test_adapters_change_nothing_at_first_and_leave_what_is_trained(language):
    model, _ = join_given(settings(), language, seed=0)
    model.requires_grad_(False)
    for weight in vision_weights(model).values():
        weight.requires_grad_(True)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = add_adapters(model, settings().training.lora, seed=0)
        torch.testing.assert_close(model(input_ids=ids).logits, before)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in trained if "lora_" not in name} == set(vision_weights(model))
    assert len([name for name in trained if "lora_" in name]) == len(adapter_weights(adapted)) == 28
