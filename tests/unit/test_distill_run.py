"""The distillation command: exact resume, what it writes, and one line for everything that is wrong."""

from __future__ import annotations

import csv
import io
import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from matvlm.distill import run
from matvlm.models.folder import hash_files
from matvlm.provenance import model_hash
from matvlm.training import checkpoint

SETTINGS = {
    "steps": 5,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 0.01,
    "warmup_steps": 1,
    "decay_steps": 2,
    "validate_every": 2,
    "validation_rows": 2,
    "save_every": 1,
}

CACHE = {"mode": "full", "dtype": "float32"}
"""Of the cache that the tests share."""


def arguments(small, out, *, state=None, **changes) -> list[str]:
    options = {
        "settings": json.dumps(SETTINGS | changes.pop("settings", {})),
        "max-length": 448,
        "init-dir": small / "init" / "attention-even-50",
        "teacher": small / "teacher",
        "data": small / "data" / "distill",
        "val": small / "data" / "val",
        "cache": small / "cache",
        "cache-settings": json.dumps(CACHE),
        "init": "attention",
        "layout": "even-50",
        "loss": "prob+layer+ce",
        "divergence": "kl",
        "seed": 0,
        "state": state or out.with_name("state"),
        "out": out,
        "device": "cpu",
    } | {key.replace("_", "-"): value for key, value in changes.items()}
    return [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]


def log_of(folder) -> list[dict]:
    rows = csv.DictReader(io.StringIO((folder / "log.csv").read_text()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_resume_equals_no_interruption_bit_for_bit(small, cache, tmp_path, monkeypatch):
    """The interrupted run is stopped in the middle of writing its third checkpoint."""
    assert run.main(arguments(small, tmp_path / "whole" / "out")) == 0

    write, state = checkpoint.write, tmp_path / "stopped" / "state"

    def stopped(folder, progress, found):
        write(folder, progress, found)
        if progress.step == 3:
            newest = sorted(folder.glob("step-*"))[-1]
            weights = newest / "weights.safetensors"
            weights.write_bytes(weights.read_bytes()[:100])  # as a crash would leave it
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.main(arguments(small, tmp_path / "stopped" / "out", state=state))
    assert not (tmp_path / "stopped" / "out").exists()
    monkeypatch.setattr(checkpoint, "write", write)
    assert run.main(arguments(small, tmp_path / "stopped" / "out", state=state)) == 0

    one, other = tmp_path / "whole" / "out", tmp_path / "stopped" / "out"
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert log_of(one) == log_of(other)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
        ),
    ],
)
def test_a_deterministic_run_is_the_same_bits_each_time_and_resumed(small, tmp_path, capsys, device):
    settings = {"deterministic": True, "precision": "bfloat16"}
    options = {"cache": None, "cache_settings": None, "device": device, "settings": settings}
    one, other = tmp_path / "one" / "out", tmp_path / "other" / "out"
    for out in (one, other):
        assert run.main(arguments(small, out, **options)) == 0
    same = (one / "model.safetensors").read_bytes()
    assert (other / "model.safetensors").read_bytes() == same
    assert log_of(one) == log_of(other)
    (state,) = other.with_name("state").iterdir()
    shutil.rmtree(max(state.glob("step-*")))
    shutil.rmtree(other)
    capsys.readouterr()
    assert run.main(arguments(small, other, **options)) == 0
    assert "resumed at step 4 of 5" in capsys.readouterr().err
    assert (other / "model.safetensors").read_bytes() == same
    assert log_of(one) == log_of(other)


def test_what_a_run_writes(small, cache, tmp_path):
    out = tmp_path / "out"
    assert run.main(arguments(small, out, tensorboard=tmp_path / "tb")) == 0
    record = json.loads((out / "provenance.json").read_text())
    assert record["cell"] == {
        "init": "attention", "layout": "even-50", "loss": "prob+layer+ce", "divergence": "kl", "seed": 0
    }  # fmt: skip
    assert record["cost"]["wall_s"] > 0
    assert set(record["gradient_norms_at_start"]) == {"prob", "layer", "ce"}
    rows = log_of(out)
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row["step"] for row in rows if row["val_kl"]] == ["0", "2", "4", "5"]
    assert float(rows[-1]["tokens"]) > float(rows[1]["tokens"]) > 0
    assert list((tmp_path / "tb").glob("events.*"))
    before, after = (
        load_file(small / "init" / "attention-even-50" / "model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name.removeprefix("model.").removeprefix("language_model.") for name in record["trained"]}
    assert {name.removeprefix("language_model.model.") for name in changed} <= trained
    assert any(name.endswith("mamba.in_proj.weight") for name in changed)


def test_another_configuration_does_not_resume(small, cache, tmp_path):
    state = tmp_path / "state"
    assert run.main(arguments(small, tmp_path / "a", state=state)) == 0
    assert run.main(arguments(small, tmp_path / "b", state=state, settings={"learning_rate": 0.02})) == 0
    assert log_of(tmp_path / "a") != log_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "resumes"),
    [
        ({"micro_batch_size": 1, "gradient_checkpointing": True, "head_chunk": 32}, True),
        ({"micro_batch_size": 1, "reduction": "release"}, False),
    ],
)
def test_a_run_goes_on_with_less_memory(small, tmp_path, capsys, changes, resumes):
    """What a GPU without room makes one change; the release's losses depend on the micro-batches."""
    options = {"state": tmp_path / "state", "cache": None, "cache_settings": None}
    kept = {"reduction": changes.get("reduction", "token")}
    assert run.main(arguments(small, tmp_path / "a", **options, settings=kept)) == 0
    assert run.main(arguments(small, tmp_path / "b", **options, settings=changes)) == 0
    assert ("resumed at step 5" in capsys.readouterr().err) == resumes


@pytest.mark.parametrize("options", [{}, {"cache": None, "cache_settings": None}], ids=["cached", "online"])
def test_a_run_in_bfloat16(small, cache, tmp_path, options):
    """Its losses are those in float32 as far as bfloat16 tells, and what it writes is bfloat16."""
    for precision in ("float32", "bfloat16"):
        settings = {"precision": precision, "gradient_checkpointing": precision == "bfloat16"}
        assert run.main(arguments(small, tmp_path / precision, **options, settings=settings)) == 0
    exact, rounded = log_of(tmp_path / "float32"), log_of(tmp_path / "bfloat16")
    for one, other in zip(exact, rounded, strict=True):
        for name in ("loss_prob", "loss_layer", "loss_ce", "val_ce"):
            if one[name]:
                assert float(other[name]) == pytest.approx(float(one[name]), rel=0.05)
    stored = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if tensor.ndim > 1} == {torch.bfloat16}


def test_a_gpu_without_room(small, cache, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(run.DistillTask, "losses", full)
    words = [
        "out of GPU memory at step 1",
        "micro_batch_size: 1 (now 2) takes half",
        "gradient_checkpointing: true",
    ]
    fails(capsys, words, arguments(small, tmp_path / "out"), tmp_path / "out")


def test_a_student_whose_frozen_part_is_not_the_teachers(small, tmp_path, capsys):
    folder = shutil.copytree(small / "init" / "attention-even-50", tmp_path / "init")
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.model.layers.1.mlp.fc1.weight"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(record | {"files": hash_files(folder)}))
    argv = arguments(small, tmp_path / "out", init_dir=folder, cache=None, cache_settings=None)
    fails(capsys, ["layers.1.mlp.fc1.weight is not the student's", "init_hybrid"], argv, tmp_path / "out")


@pytest.fixture
def broken(cache, tmp_path):
    """A copy of the cache to break."""
    return shutil.copytree(cache, tmp_path / "cache")


def fails(capsys, words: list[str], argv: list[str], out) -> None:
    """The command ends with one line that holds ``words``, and leaves nothing at ``out``."""
    assert run.main(argv) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert not out.exists()


def test_a_shard_cut_short(small, broken, tmp_path, capsys):
    shard = sorted(broken.glob("shard-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    argv = arguments(small, tmp_path / "out", cache=broken)
    fails(capsys, [shard.name, "cut short or altered"], argv, tmp_path / "out")


def test_an_altered_shard(small, broken, tmp_path, capsys):
    shard = sorted(broken.glob("shard-*"))[-1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    argv = arguments(small, tmp_path / "out", cache=broken)
    fails(capsys, [shard.name, "cut short or altered"], argv, tmp_path / "out")


def test_a_missing_shard(small, broken, tmp_path, capsys):
    shard = sorted(broken.glob("shard-*"))[-1]
    shard.unlink()
    argv = arguments(small, tmp_path / "out", cache=broken)
    fails(capsys, [shard.name, "missing"], argv, tmp_path / "out")


def test_a_manifest_that_is_not_json(small, broken, tmp_path, capsys):
    (broken / "manifest.json").write_text("{")
    argv = arguments(small, tmp_path / "out", cache=broken)
    fails(capsys, ["manifest.json", "not JSON"], argv, tmp_path / "out")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd"])
def test_a_manifest_that_leads_outside(small, broken, tmp_path, capsys, name):
    manifest = json.loads((broken / "manifest.json").read_text())
    for shard in manifest["shards"]:
        shard["file"] = name
    (broken / "manifest.json").write_text(json.dumps(manifest))
    argv = arguments(small, tmp_path / "out", cache=broken)
    fails(capsys, ["missing"], argv, tmp_path / "out")


def test_a_cache_of_another_configuration(small, cache, tmp_path, capsys):
    argv = arguments(small, tmp_path / "out", max_length=300)
    fails(capsys, ["max_length 448", "300"], argv, tmp_path / "out")


def test_a_cache_of_other_data(small, cache, tmp_path, capsys):
    argv = arguments(small, tmp_path / "out", data=small / "data" / "val")
    fails(capsys, ["data_hash"], argv, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (CACHE | {"dtype": "bfloat16"}, ["dtype 'float32'", "'bfloat16'"]),
        ({"mode": "topk", "top_k": 8}, ["mode 'full'", "'topk'"]),
        ({"mode": "online"}, ["--cache", "cache.mode is online"]),
        (None, ["--cache-settings", "required with --cache"]),
        ("{", ["--cache-settings is not JSON"]),
    ],
)
def test_a_cache_of_other_settings(small, cache, tmp_path, capsys, settings, words):
    text = settings if settings is None or isinstance(settings, str) else json.dumps(settings)
    fails(capsys, words, arguments(small, tmp_path / "out", cache_settings=text), tmp_path / "out")


def config_hash(folder) -> str:
    return json.loads((folder / "provenance.json").read_text())["provenance"]["config_hash"]


def test_neither_another_cache_nor_other_validation_data_resumes(small, cache, tmp_path, capsys):
    """What the teacher's targets came from, and what the validation losses were measured on, are settings."""
    state = tmp_path / "state"
    runs = {
        "cached": {},
        "online": {"cache": None, "cache_settings": None},
        "other val": {"val": small / "data" / "distill"},
    }
    for number, changes in enumerate(runs.values(), 1):
        assert run.main(arguments(small, tmp_path / str(number), state=state, **changes)) == 0
        assert "resumed" not in capsys.readouterr().err
        assert len(list(state.iterdir())) == number
    assert len({config_hash(tmp_path / str(number)) for number in (1, 2, 3)}) == 3


def test_a_top_k_cache_and_a_divergence_it_cannot_serve(small, broken, tmp_path, capsys):
    topk = {"mode": "topk", "top_k": 8, "tail_draws": 4}
    manifest = json.loads((broken / "manifest.json").read_text()) | topk
    (broken / "manifest.json").write_text(json.dumps(manifest))
    argv = arguments(small, tmp_path / "out", cache=broken, cache_settings=json.dumps(topk), divergence="l2")
    fails(capsys, ["l2", "top-k"], argv, tmp_path / "out")


def test_release_reduction_with_a_cache(small, cache, tmp_path, capsys):
    argv = arguments(small, tmp_path / "out", settings={"reduction": "release"})
    fails(capsys, ["release", "online"], argv, tmp_path / "out")


def test_a_student_of_another_initialisation(small, cache, tmp_path, capsys):
    argv = arguments(small, tmp_path / "out", init="random")
    fails(capsys, ["made with init 'attention'", "'random'"], argv, tmp_path / "out")


def test_a_student_of_another_teacher(small, tmp_path, capsys):
    """The other teacher differs in one number of its configuration, with the same weights."""
    other = shutil.copytree(small / "teacher", tmp_path / "teacher")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["layer_norm_eps"] *= 2
    (other / "config.json").write_text(json.dumps(config))
    record = json.loads((other / "provenance.json").read_text())
    (other / "provenance.json").write_text(json.dumps(record | {"files": hash_files(other)}))
    argv = arguments(small, tmp_path / "out", teacher=other, cache=None)
    words = [model_hash(small / "teacher"), model_hash(other), "was made of the teacher"]
    fails(capsys, words, argv, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "allowed"), [("loss", "prob+", "prob+layer+ce"), ("divergence", "hellinger", "reverse")]
)
def test_an_unknown_loss_or_divergence(small, cache, tmp_path, capsys, key, value, allowed):
    with pytest.raises(SystemExit):
        run.main(arguments(small, tmp_path / "out", **{key: value}))
    error = capsys.readouterr().err
    assert value in error
    assert allowed in error


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_model_that_is_not_whole(small, cache, tmp_path, capsys, damage, name):
    folder = shutil.copytree(small / "init" / "attention-even-50", tmp_path / "init")
    weights = folder / name
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    if damage == "remove":
        weights.unlink()
    else:
        weights.write_bytes(content if damage == "alter" else content[: len(content) // 2])
    argv = arguments(small, tmp_path / "out", init_dir=folder)
    fails(capsys, [name], argv, tmp_path / "out")


@pytest.mark.parametrize("files", [[], {}, "all", None, ["model.safetensors"], {"config.json": "0"}])
def test_a_model_whose_files_are_not_listed(small, cache, tmp_path, capsys, files):
    folder = shutil.copytree(small / "init" / "attention-even-50", tmp_path / "init")
    record = json.loads((folder / "provenance.json").read_text()) | {"files": files}
    (folder / "provenance.json").write_text(json.dumps(record))
    argv = arguments(small, tmp_path / "out", init_dir=folder)
    fails(capsys, ["provenance.json", "files"], argv, tmp_path / "out")


@pytest.mark.processes
def test_a_full_disk(small, cache, tmp_path):
    """A limit on the size of files stands in for the disk: writing fails in the same way and place."""
    command = [sys.executable, "-m", "matvlm.distill.run", *arguments(small, tmp_path / "out")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert str(tmp_path / "state") in errors[0]
    assert "File too large" in errors[0]
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


def test_a_loss_that_is_not_finite(small, cache, tmp_path, capsys):
    argv = arguments(small, tmp_path / "out", settings={"learning_rate": 1e30, "max_grad_norm": 1e30})
    fails(capsys, ["at step", "last good checkpoint"], argv, tmp_path / "out")
