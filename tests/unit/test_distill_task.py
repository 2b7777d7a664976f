"""Distillation: targets, what is trained, and that neither cache, padding nor micro-batches change a loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import PhiConfig, PhiModel

from matvlm.config import Distillation
from matvlm.data.dataset import load_split
from matvlm.data.processor import load_processor
from matvlm.distill.cache.read import CacheReader
from matvlm.distill.cache.write import Writer
from matvlm.distill.forward import Needs, teacher_pass
from matvlm.distill.recompute import checkpointed
from matvlm.distill.targets import Cached, Online, Tower
from matvlm.distill.task import DistillTask, Objective, compile_layers, select_trainable
from matvlm.distill.trunk import load_teacher
from matvlm.errors import UserError
from matvlm.models.folder import load_model

CPU = torch.device("cpu")
LOSSES = ("prob", "layer", "ce")
EVERY = Needs(points=(0, 1, 2, 3, 4), scores=True)
"""All that there is of the small teacher, which has four layers."""


@pytest.fixture(scope="module")
def data(small):
    return load_split(small / "data" / "distill", load_processor(small / "teacher"), 448).vary()


def make_task(
    small, data, source=None, loss="prob+layer+ce", divergence="kl", init="attention-even-50", **settings
):
    teacher = Online(load_model(small / "teacher"))
    student = load_model(small / "init" / init)
    select_trainable(student)
    options = {"steps": 4, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3}
    options |= {"warmup_steps": 0, "decay_steps": 0, "validation_rows": 2} | settings
    objective = Objective.of(loss, divergence, Distillation(**options))
    return DistillTask(student, data, source or teacher, objective, (data, teacher))


def losses_of(task, rows, parts=None):
    """Total loss, named losses and gradient of ``rows``, split into ``parts`` micro-batches."""
    batches = [task.batch(part, 0) for part in np.array_split(np.asarray(rows), parts or 1)]
    counts = [task.counts(batch) for batch in batches]
    whole = {name: sum(count[name] for count in counts) for name in counts[0]}
    task.model.zero_grad()
    total, named = 0.0, {}
    for batch in batches:
        loss, each = task.losses(batch, whole)
        loss.backward()
        total += float(loss.detach())
        for name, value in each.items():
            named[name] = named.get(name, 0.0) + float(value.detach())
    gradient = {n: w.grad.clone() for n, w in task.model.named_parameters() if w.grad is not None}
    return total, named, gradient


def distance(ours, theirs):
    """Norm of the difference of two gradients, relative to the norm of ``theirs``."""
    assert ours.keys() == theirs.keys()
    flat = [torch.cat([gradient[name].flatten() for name in theirs]) for gradient in (ours, theirs)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def test_states_are_the_residual_stream_before_the_final_norm(small, data):
    """The last layer's target too: through the final norm and the head it gives the teacher's logits."""
    teacher = load_model(small / "teacher")
    batch = data.batch([0, 1, 2])
    passed = teacher_pass(teacher, batch, EVERY)
    with torch.no_grad():
        stock = teacher(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=batch["pixel_values"],
            output_hidden_states=True,
        )
        head = teacher.lm_head(teacher.model.language_model.final_layernorm(passed.states[4]))
        logits = teacher.lm_head(passed.hidden)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], stock.logits[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head[real], stock.logits[real], rtol=1e-4, atol=1e-5)
    for point, theirs in enumerate(stock.hidden_states[:-1]):
        torch.testing.assert_close(passed.states[point][real], theirs[real], rtol=1e-4, atol=1e-5)


def test_layer_loss_is_the_distance_from_the_teachers_layer_fed_the_teachers_state(small, data):
    task = make_task(small, data, loss="layer", init="attention-end-50")
    batch = data.batch([0, 1])
    teacher = load_model(small / "teacher")
    states = teacher_pass(teacher, batch, EVERY).states
    layers = task.model.config.text_config.mamba_layers
    assert layers == [2, 3]  # the last layer is among them
    real = batch["attention_mask"].bool()
    expected = 0.0
    for index in layers:
        with torch.no_grad():
            output = task.model.model.language_model.layers[index](states[index], attention_mask=real)
        expected += (output - states[index + 1])[real].double().square().mean(-1).sqrt().mean()
    total, named, _ = losses_of(task, [0, 1])
    assert total == pytest.approx(float(expected), rel=1e-4)
    assert named.keys() == {"loss_layer"}


@pytest.mark.parametrize("loss", ["prob", "layer", "ce", "prob+layer", "prob+ce", "layer+ce", "prob+layer+ce"])
def test_cached_and_online_losses_agree(small, data, cache, loss):
    rows = [3, 0, 5]
    online = losses_of(make_task(small, data, loss=loss), rows)
    cached = losses_of(make_task(small, data, Cached(CacheReader(cache, {}), CPU), loss=loss), rows)
    assert set(online[1]) == {f"loss_{name}" for name in loss.split("+")}
    assert cached[0] == pytest.approx(online[0], rel=1e-4)
    for name, value in online[1].items():
        assert cached[1][name] == pytest.approx(value, rel=1e-4)
    assert distance(cached[2], online[2]) < 1e-4


def test_a_top_k_cache_of_nearly_all_tokens_gives_nearly_the_full_loss(small, data, debug, tmp_path):
    settings = debug.cache.model_copy(
        update={"mode": "topk", "top_k": len(load_processor(small / "teacher").tokenizer) - 1}
    )
    writer = Writer(settings, small / "teacher", small / "data" / "distill", 448, tmp_path / "state", CPU)
    writer.gather(tmp_path / "cache")
    topk = make_task(small, data, Cached(CacheReader(tmp_path / "cache", {}), CPU), loss="prob")
    assert losses_of(topk, [0, 1])[0] == pytest.approx(
        losses_of(make_task(small, data, loss="prob"), [0, 1])[0], rel=1e-3
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_nothing(small, data, parts):
    whole, named, gradient = losses_of(make_task(small, data), [0, 1, 2, 3])
    split = losses_of(make_task(small, data), [0, 1, 2, 3], parts)
    assert split[0] == pytest.approx(whole, rel=1e-5)
    assert split[1] == pytest.approx(named, rel=1e-5)
    assert distance(split[2], gradient) < 1e-4


def test_only_mixers_and_connector_learn(small, data):
    task = make_task(small, data)
    _, _, gradient = losses_of(task, [0, 1])
    learnt = {name.split(".mamba.")[0] for name in gradient}
    assert learnt == {
        "model.language_model.layers.0",
        "model.language_model.layers.2",
        *(f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
    }
    assert all(".mamba." in name for name in gradient if "layers" in name)


def test_all_that_is_frozen_is_the_teachers(small):
    teacher, student = load_model(small / "teacher"), load_model(small / "init" / "random-even-50")
    given = teacher.state_dict()
    own = {name for name in student.state_dict() if ".mamba." in name}
    assert own
    for name, value in student.state_dict().items():
        if name not in own:
            assert torch.equal(value, given[name]), name


def test_each_terms_gradient_norm_is_reported(small, data):
    norms = make_task(small, data).gradient_norms(np.array([0, 1]))
    for term in LOSSES:
        _, _, gradient = losses_of(make_task(small, data, loss=term), [0, 1])
        expected = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
        assert norms[term] == pytest.approx(float(expected), rel=1e-4)


def test_release_reduction_sums_over_padding_too(small, data):
    task = make_task(small, data, loss="prob", reduction="release")
    batch = task.batch(np.array([0, 1, 2]), 0)
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        hidden = task.model.model.language_model(
            inputs_embeds=task.model.get_input_embeddings()(batch["input_ids"]), use_cache=False
        )
        assert hidden.last_hidden_state.shape[:2] == batch["input_ids"].shape
    total, _, _ = losses_of(task, [0, 1, 2])
    per_token = losses_of(make_task(small, data, loss="prob"), [0, 1, 2])[0]
    positions = batch["input_ids"].shape[1]
    assert total > per_token * batch["tokens"] / 3  # padding adds to the sum over real positions
    assert total < per_token * positions * 10


@pytest.mark.parametrize("kind", ["l2", "kl"])
@pytest.mark.parametrize("parts", [1, 2])
def test_release_reduction_of_the_layer_loss(small, data, kind, parts):
    """Padding included; the last layer, which is replaced here, after the final LayerNorm on both sides."""
    options = {"loss": "layer", "init": "attention-end-50", "reduction": "release", "layer_divergence": kind}
    task = make_task(small, data, **options)
    text, teacher = task.model.model.language_model, load_model(small / "teacher")
    expected = 0.0
    for rows in np.array_split(np.arange(4), parts):
        states = teacher_pass(teacher, data.batch(rows), EVERY).states
        for index in (2, 3):
            with torch.no_grad():
                ours, theirs = text.layers[index](states[index]), states[index + 1]
                if index == 3:
                    norm = teacher.model.language_model.final_layernorm
                    ours, theirs = norm(ours), norm(theirs)
            if kind == "l2":
                expected += float((ours - theirs).square().sum().sqrt()) / parts
            else:
                p = theirs.softmax(-1)
                each = p * (p.log() - ours.softmax(-1).log())
                expected += float(each.sum()) / len(rows) / parts
    total, _, gradient = losses_of(task, range(4), parts)
    assert total == pytest.approx(expected, rel=1e-4)
    assert all(torch.isfinite(g).all() for g in gradient.values())


def test_release_reduction_of_the_answers_is_a_mean_of_each_micro_batchs_mean(small, data):
    """The micro-batches differ in their numbers of answers, so that this is not the mean over all of them."""
    task = make_task(small, data, loss="ce", reduction="release")
    rows = np.argsort([data.batch([row])["answers"] for row in range(len(data))])[[0, 1, -2, -1]]
    means = []
    for part in (rows[:2], rows[2:]):
        batch = data.batch(part)
        with torch.no_grad():
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
            log_p = task.model(**inputs).logits[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        chosen = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        means.append(float(-chosen[labels != -100].mean()))
    assert losses_of(task, rows, 2)[0] == pytest.approx(sum(means) / 2, rel=1e-4)
    per_token = losses_of(make_task(small, data, loss="ce"), rows, 2)[0]
    assert per_token != pytest.approx(sum(means) / 2, rel=1e-4)


def test_a_cache_whose_rows_are_of_another_length(small, data, cache):
    """As where the data was varied otherwise when it was cached: never other positions' targets in silence."""
    reader = CacheReader(cache, {})
    reader.lengths[1] -= 1
    task = make_task(small, data, Cached(reader, CPU))
    task.batch(np.array([0]), 0)
    with pytest.raises(UserError, match=rf"{cache}: holds \d+ positions of conversation 1, which has \d+"):
        task.batch(np.array([0, 1]), 0)


def test_validation_measures_answers_alone(small, data):
    task = make_task(small, data, loss="layer")
    values = task.validate()
    assert values["val_kl"] > 0
    assert values["val_ce"] > 0
    assert task.model.training


@pytest.mark.parametrize("reduction", ["token", "release"])
@pytest.mark.parametrize("divergence", ["kl", "reverse", "jsd", "ce", "l2"])
def test_every_divergence_trains(small, data, divergence, reduction):
    task = make_task(small, data, loss="prob", divergence=divergence, reduction=reduction)
    _, _, gradient = losses_of(task, [0, 1])
    assert all(torch.isfinite(g).all() for g in gradient.values())
    assert any(g.abs().max() > 0 for g in gradient.values())


def test_what_a_loss_does_not_need_is_not_computed(small, data):
    """The teacher's layers up to the last that is compared; no teacher for the answers, no head for the layers."""
    ran = []
    for loss, init in (("ce", "attention-even-50"), ("layer", "attention-even-50"), ("prob", "attention-even-50")):
        task = make_task(small, data, loss=loss, init=init)
        if loss == "ce":
            task.source = Tower(task.model)
        else:
            teacher = task.source.model
            watched = {"teacher's head": teacher.lm_head} | {
                f"teacher {i}": layer for i, layer in enumerate(teacher.model.language_model.layers)
            }
            for name, module in watched.items():
                module.register_forward_hook(lambda *_, name=name: ran.append(name))
        task.model.lm_head.register_forward_hook(lambda *_: ran.append("student's head"))
        task.model.model.language_model.register_forward_hook(lambda *_: ran.append("student"))
        ran.clear()
        batch = task.batch(np.array([0, 1]), 0)
        assert not ran  # nothing of it ahead of time
        task.losses(batch, task.counts(batch))
        expected = {
            "ce": ["student", "student's head"],
            "layer": ["teacher 0", "teacher 1", "teacher 2"],
            "prob": [*(f"teacher {i}" for i in range(4)), "student", "student's head", "teacher's head"],
        }
        assert ran == expected[loss]


@pytest.mark.parametrize("loss", ["prob", "ce"])
def test_the_head_sees_the_positions_that_the_loss_uses(small, data, loss):
    task = make_task(small, data, loss=loss, head_chunk=50)
    seen = []
    task.model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    batch = task.batch(np.array([0, 1, 2]), 0)
    counts = task.counts(batch)
    task.losses(batch, counts)
    assert sum(seen) == counts["tokens" if loss == "prob" else "answers"]
    assert max(seen) <= 50
    assert sum(seen) < batch["input_ids"].numel()


def test_no_teacher_serves_a_loss_that_needs_one(small, data):
    task = make_task(small, data, Tower(load_model(small / "teacher")), loss="layer")
    with pytest.raises(ValueError, match="need a teacher"):
        task.batch(np.array([0]), 0)


@pytest.mark.parametrize("loss", ["prob+layer+ce", "layer"])
def test_neither_one_trunk_nor_checkpointing_changes_anything(small, data, loss):
    expected = losses_of(make_task(small, data, loss=loss), [0, 1, 2])
    task = make_task(small, data, loss=loss, gradient_checkpointing=True)
    task.source = Online(load_teacher(small / "teacher", task.model))
    found = losses_of(task, [0, 1, 2])
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert distance(found[2], expected[2]) < 1e-6
    assert all(layer.gradient_checkpointing for layer in task.model.model.language_model.layers)
    embedding = task.model.get_input_embeddings()
    assert not embedding._forward_hooks  # nothing asks for gradients of the embeddings


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_are_the_same_function(small, data, monkeypatch, checkpointing):
    """Dynamo traces them, all into one graph a model and mode; what a compiler makes of that is its own affair."""
    expected = losses_of(make_task(small, data), [0, 1, 2])
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    task = make_task(small, data, compile=True, gradient_checkpointing=checkpointing)
    task.source = Online(load_teacher(small / "teacher", task.model))
    compile_layers(task.source.model.model.language_model)
    graphs = []
    for _ in range(2):
        found = losses_of(task, [0, 1, 2])
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert distance(found[2], expected[2]) < 1e-5
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[1] <= 4  # of two models' layers, and of the divergence
    assert not counters["graph_break"]


def test_a_compiled_checkpoint_keeps_what_is_dear_for_its_size():
    """Of a frozen Phi layer of width d: its input, q, k, v and attention's output, 5 d a position, where the
    compiled layer keeps more than 9 d by itself. Gradients are the same."""
    width, positions = 80, 3 * 37
    config = PhiConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
        resid_pdrop=0.0,
        partial_rotary_factor=0.4,
    )
    torch.manual_seed(0)
    model = PhiModel(config).requires_grad_(False).train()
    (layer,) = model.layers
    plain = layer.forward
    inputs, weights = torch.randn(3, 37, width, requires_grad=True), torch.randn(3, 37, width)

    def measure(forward) -> tuple[Tensor, float]:
        layer.forward = forward
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        (gradient,) = torch.autograd.grad((out * weights).sum(), inputs)
        # Without what the final norm keeps, its input.
        return gradient, sum(kept.values()) / (4 * width * positions) - 1

    expected, _ = measure(plain)
    found, whole = measure(torch.compile(plain, backend="aot_eager"))
    torch.testing.assert_close(found, expected)
    found, selected = measure(torch.compile(checkpointed(plain), backend="aot_eager"))
    torch.testing.assert_close(found, expected)
    assert whole > 9
    assert 4.9 < selected < 5.3
