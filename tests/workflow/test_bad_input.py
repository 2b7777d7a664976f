"""Mistakes of a user end with one clear line, before anything runs."""

from __future__ import annotations

import shutil

import pytest
import yaml

from conftest import run, snakemake

PARAMS = {
    "an unknown preset": (("preset",), "huge", "preset: 'huge' is unknown; allowed: "),
    "an unknown key": (("presets", "tiny", "distill", "lr"), 0.1, "presets.tiny.distill.lr: unknown key"),
    "an unknown loss": (("ablation", "losses"), ["prob", "hinge"], "'prob+layer+ce'"),
    "an unknown layout": (("ablation", "layouts"), ["odd-25"], "unknown layout 'odd-25'; allowed: even-"),
    "a layer out of range": (("ablation", "layouts"), ["0,16"], "layer 16 is out of range; allowed: 0 to 15"),
    "a ratio too small": (("ablation", "ratios"), [1], "ratio 1 % of 16 layers replaces no layer"),
    "a ratio too large": (("ablation", "ratios"), [101], "ratio 101 %"),
    "no such teacher": (("presets", "tiny", "teacher", "path"), "models/none", "models/none holds no model"),
}


def said(done) -> list[str]:
    """What a user reads, without the line with which Snakemake names its profile."""
    return [line for line in done.stdout.strip().splitlines() if not line.startswith("Using workflow specific")]


@pytest.mark.parametrize(("keys", "value", "message"), PARAMS.values(), ids=PARAMS)
def test_params(checkout, keys, value, message):
    path = checkout / "params.yaml"
    params = yaml.safe_load(path.read_text())
    at = params
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(yaml.safe_dump(params))
    done = run(checkout, "snakemake", "--cores", "2", "all")
    assert done.returncode != 0
    lines = said(done)
    assert len(lines) == 1, done.stdout
    assert lines[0].startswith("error: params.yaml: ")
    assert message in lines[0]
    assert not (checkout / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"preset: [tiny", "params.yaml: not YAML: "),
        (b"preset: t\xefny", "params.yaml: not YAML: "),
        (b"", "params.yaml: must be a mapping"),
    ],
    ids=["not YAML", "not UTF-8", "empty"],
)
def test_a_file_that_cannot_be_read(checkout, content, message):
    (checkout / "params.yaml").write_bytes(content)
    done = run(checkout, "snakemake", "--cores", "2", "all")
    assert done.returncode != 0
    lines = said(done)
    assert len(lines) == 1, done.stdout
    assert message in lines[0]


def test_a_command_line_that_cannot_be_read(checkout):
    done = run(checkout, "snakemake", "--cores", "2", "--config", "preset=[a", "--", "all")
    assert done.returncode != 0
    assert (
        done.stdout.strip().splitlines()[-1]
        == "error: --config: '[a' is not YAML: expected ',' or ']', but got '<stream end>'"
    )


def test_an_altered_teacher_is_refused(checkout):
    weights = checkout / "models/tiny-teacher/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = snakemake(checkout, "stage_teacher", preset="tiny")
    assert done.returncode != 0
    assert "error: models/tiny-teacher/model.safetensors: cut short or altered" in done.stdout
    assert not (checkout / "runs/tiny/teacher").exists()


def test_a_cache_shard_cut_short_is_refused(reproduced, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(reproduced, folder, symlinks=True)
    shard = next((folder / "runs/debug/cache").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    shutil.rmtree(folder / "runs/debug/distill")
    done = snakemake(folder, "stage_distill")
    assert done.returncode != 0
    assert f"{shard.name}: cut short or altered" in done.stdout
    assert not list(folder.glob("runs/debug/distill/**/provenance.json"))
