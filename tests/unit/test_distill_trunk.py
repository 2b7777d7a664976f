"""Teacher and student on one set of frozen weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import prompt
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from matvlm.distill.task import select_trainable
from matvlm.distill.trunk import SCAN, load_teacher, place, teacher_of
from matvlm.errors import UserError
from matvlm.models.folder import hash_files, load_model
from matvlm.models.initialise import build_student

CPU = torch.device("cpu")
CONNECTOR = "model.multi_modal_projector."


def student_of(small, dtype=torch.float32):
    student = place(load_model(small / "init" / "attention-even-50"), CPU, dtype)
    select_trainable(student)
    return student


def own_weights(teacher, student):
    theirs = {id(weight) for weight in student.parameters()}
    return {name: weight for name, weight in teacher.named_parameters() if id(weight) not in theirs}


def test_all_that_is_frozen_is_one_tensor(small):
    student = student_of(small)
    teacher = load_teacher(small / "teacher", student)
    own = own_weights(teacher, student)
    attention = {f"model.language_model.layers.{index}.self_attn" for index in (0, 2)}
    assert {name.rsplit(".", 2)[0] for name in own if not name.startswith(CONNECTOR)} == attention
    assert len([name for name in own if name.startswith(CONNECTOR)]) == 4
    frozen = {name for name, weight in student.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in teacher.named_parameters()} - own.keys()
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert not any(tensor.is_meta for tensor in (*teacher.parameters(), *teacher.buffers()))


def test_it_is_the_teacher_and_stays_so_while_the_student_learns(small):
    student, alone = student_of(small), load_model(small / "teacher")
    teacher = load_teacher(small / "teacher", student)
    for weight in student.parameters():
        if weight.requires_grad:
            weight.data += 1
    inputs = prompt(alone)
    with torch.no_grad():
        assert torch.equal(teacher(**inputs).logits, alone(**inputs).logits)
    student.train()
    assert not teacher.training


def test_a_student_in_bfloat16_has_a_teacher_in_bfloat16(small):
    student = student_of(small, torch.bfloat16)
    teacher = load_teacher(small / "teacher", student)
    assert {weight.dtype for weight in teacher.parameters()} == {torch.bfloat16}
    kept = {name for name, weight in student.named_parameters() if weight.dtype == torch.float32}
    assert {name.rpartition(".")[2] for name in kept} == set(SCAN)
    assert student.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    with torch.no_grad():
        assert teacher(**prompt(teacher)).logits.isfinite().all()


def test_phis_activation_is_one_kernel_and_the_same_function():
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"activation_fn": ACT2FN["gelu_new"]}), "other": nn.ReLU()})
    x = torch.linspace(-9, 9, 101, dtype=torch.float64)
    before = model["mlp"]["activation_fn"](x)
    place(model, CPU, torch.float32)
    torch.testing.assert_close(model["mlp"]["activation_fn"](x), before)
    assert type(model["mlp"]["activation_fn"]) is type(ACT2FN["gelu_pytorch_tanh"])
    assert isinstance(model["other"], nn.ReLU)


def test_llamas_norm_is_one_operation_and_the_same_function():
    torch.manual_seed(0)
    plain = LlamaRMSNorm(96, eps=1e-3)
    plain.weight.data.normal_()
    x, slope = torch.randn(5, 7, 96, requires_grad=True), torch.randn(5, 7, 96)
    model = nn.ModuleDict({"norm": plain})
    before = plain(x)
    wanted = torch.autograd.grad((before * slope).sum(), (x, plain.weight))
    place(model, CPU, torch.float32)
    assert isinstance(model["norm"], nn.RMSNorm)
    assert model["norm"].weight is plain.weight
    torch.testing.assert_close(model["norm"](x), before)
    torch.testing.assert_close(torch.autograd.grad((model["norm"](x) * slope).sum(), (x, plain.weight)), wanted)


def test_a_head_that_is_tied_to_the_embedding(small):
    """As that of small pretrained language models, whose checkpoints do not store it."""
    plain = load_model(small / "teacher")
    plain.config.tie_word_embeddings = plain.config.text_config.tie_word_embeddings = True
    plain.lm_head.weight = plain.model.language_model.embed_tokens.weight
    student = build_student(plain, "even-50", "attention", 0)
    select_trainable(student)
    teacher = teacher_of(student, plain.config, plain.named_parameters())
    assert teacher.lm_head.weight is student.model.language_model.embed_tokens.weight


def test_norm_and_mlp_that_were_made_random_are_not_the_teachers(small):
    alone = load_model(small / "teacher")
    student = build_student(alone, "even-50", "release-random", 0)
    select_trainable(student)
    teacher = teacher_of(student, alone.config, alone.named_parameters())
    own = {name.removeprefix("model.language_model.layers.") for name in own_weights(teacher, student)}
    assert {"0.mlp.fc1.weight", "2.input_layernorm.bias"} <= own
    assert not any(name.startswith(("1.", "3.")) for name in own)
    inputs = prompt(alone)
    with torch.no_grad():
        assert torch.equal(teacher(**inputs).logits, alone(**inputs).logits)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tensor: tensor + 1, "is not the student's, which is frozen and must be the teacher's"),
        (lambda tensor: tensor[:-1].clone(), "is not the student's"),
        (None, "lacks model.language_model.layers.2.self_attn.q_proj.weight"),
    ],
)
def test_a_folder_of_another_teacher(small, tmp_path, damage, words):
    folder = shutil.copytree(small / "teacher", tmp_path / "teacher")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if damage is None:
        del tensors["language_model.model.layers.2.self_attn.q_proj.weight"]
    else:
        name = "language_model.model.layers.1.mlp.fc1.weight"
        tensors[name] = damage(tensors[name])
    save_file(tensors, path)
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(record | {"files": hash_files(folder)}))
    with pytest.raises(UserError, match=rf"^{folder}: [^\n]*$") as caught:
        load_teacher(folder, student_of(small))
    assert words in str(caught.value)
