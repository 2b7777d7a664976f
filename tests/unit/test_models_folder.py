"""Model folders that are not what they say are refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from matvlm.errors import UserError
from matvlm.models.folder import INDEX, check_folder, hash_files, load_model
from matvlm.models.hybrid_phi import HybridPhiConfig
from matvlm.training.memory import fits

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small / "teacher", tmp_path / "teacher"))


def seal(folder: Path) -> None:
    """Let the folder's record agree with what is there."""
    record = folder / "provenance.json"
    kept = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps({**kept, "files": hash_files(folder)}), encoding="utf-8")


def index(folder: Path, *names: str) -> None:
    tensors = dict(zip(load_file(folder / WEIGHTS), [*names, *[names[-1]] * 1000], strict=False))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": tensors}), encoding="utf-8")


def refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_an_index_that_names_files_outside_the_folder(folder):
    shutil.copy(folder / WEIGHTS, folder.parent / "out.safetensors")
    index(folder, WEIGHTS, "../out.safetensors")
    seal(folder)
    refused(folder, r"weight_map: names '\.\./out\.safetensors', which provenance\.json does not list")


def test_half_a_set_of_shards(folder):
    index(folder, WEIGHTS, "model-00002-of-00002.safetensors")
    seal(folder)
    refused(folder, r"names 'model-00002-of-00002\.safetensors'")


@pytest.mark.parametrize("text", ["[]", '{"weight_map": 3}', "not JSON"])
def test_an_index_that_is_none(folder, text):
    (folder / INDEX).write_text(text, encoding="utf-8")
    seal(folder)
    refused(folder, "not an index with an entry 'weight_map'")


def test_a_folder_without_weights(folder):
    (folder / WEIGHTS).unlink()
    seal(folder)
    with pytest.raises(UserError, match="lists no weights"):
        check_folder(folder)


def test_weights_of_another_type(folder):
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("k_proj.weight"))
    save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / WEIGHTS, metadata={"format": "pt"})
    seal(folder)
    refused(folder, rf"{name}: is I8; weights are F16, BF16, F32, F64")


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["full_attention"] * 3, "layer_types: 3 for 2 hidden layers"),
        (["full_attention", "bogus"], "layer_types: unknown 'bogus'; allowed: full_attention, linear_attention"),
    ],
)
def test_layer_types_that_are_none(kinds, words):
    with pytest.raises(ValueError, match=words):
        HybridPhiConfig(num_hidden_layers=2, layer_types=kinds)


def test_a_gpu_that_is_full_is_one_line():
    with pytest.raises(UserError, match=r"^weights: does not fit into the memory of cuda:0$"):  # noqa: SIM117
        with fits("weights", torch.device("cuda:0")):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
