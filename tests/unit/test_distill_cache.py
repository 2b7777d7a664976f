"""Making a cache in one job or in many, killed or not, and reading it in any order or shard after shard."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_distill_run import arguments, fails, log_of

from matvlm.data import render
from matvlm.distill import run
from matvlm.distill.cache import run as command
from matvlm.distill.cache.read import HELD, CacheReader
from matvlm.distill.cache.write import Writer
from matvlm.distill.forward import Needs
from matvlm.distill.losses import prob_divergence
from matvlm.errors import UserError
from matvlm.models.folder import hash_files
from matvlm.training.order import Order

CPU = torch.device("cpu")
SHARDS = 4
"""Of a cache of the small split in shards of two conversations."""


@pytest.fixture
def writer(small, debug, tmp_path):
    """Makes a `Writer` of shards of two conversations; its settings and layers can be changed."""

    def make(layers=None, **changes):
        settings = debug.cache.model_copy(update={"shard_size": 2} | changes)
        return Writer(settings, small / "teacher", small / "data" / "distill", 448, tmp_path / "s", CPU, layers)

    return make


def made(monkeypatch, stop: int | None = None) -> list[int]:
    """First rows of the shards that are made from now on; the one that would be number ``stop`` kills the job."""
    rows: list[int] = []
    shard = Writer._shard

    def watched(self, found):
        if len(rows) == stop:
            raise KeyboardInterrupt
        rows.append(int(found[0]))
        return shard(self, found)

    monkeypatch.setattr(Writer, "_shard", watched)
    return rows


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def whole(writer, tmp_path):
    """A cache made by one job, and gone from the state."""
    writer().gather(tmp_path / "whole")
    shutil.rmtree(tmp_path / "s")
    return tmp_path / "whole"


def test_many_jobs_make_the_cache_of_one(writer, whole, tmp_path, monkeypatch):
    names = [name for part in range(3) for name in writer().make(part, 3)]
    assert sorted(names) == [f"shard-{number:05d}.safetensors" for number in range(SHARDS)]
    again = made(monkeypatch)
    writer().gather(tmp_path / "gathered", names)
    assert again == []
    assert files(tmp_path / "gathered") == files(whole)


def test_the_same_tokens_are_drawn_whichever_job_makes_the_shard(writer, tmp_path):
    changes = {"mode": "topk", "top_k": 4, "tail_draws": 2}
    for part in (2, 0, 1):
        writer(**changes).make(part, 3)
    writer(**changes).gather(tmp_path / "gathered")
    shutil.rmtree(tmp_path / "s")
    writer(**changes).gather(tmp_path / "one")
    assert files(tmp_path / "gathered") == files(tmp_path / "one")


@pytest.mark.parametrize("changes", [{"top_k": 3, "tail_draws": 0}, {"top_k": 1000, "tail_draws": 5}])
def test_a_cache_without_draws(writer, tmp_path, changes):
    """None are asked for, or there is nothing to draw from."""
    writer(mode="topk", **changes).gather(tmp_path / "out")
    scores = CacheReader(tmp_path / "out", {}).read(np.array([0, 5]), Needs((), True), 440, CPU)["scores"]
    top = scores(torch.tensor([3, 441]))
    assert top.drawn_values.shape == top.drawn_indices.shape == (2, 0)
    assert prob_divergence(top.values.new_zeros(2, 1000), top, "kl").isfinite().all()


def test_a_killed_job_goes_on_with_the_first_missing_shard(writer, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        made(patch, stop=2)
        with pytest.raises(KeyboardInterrupt):
            writer().gather(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rows = made(monkeypatch)
    writer().gather(tmp_path / "out")
    assert rows == [4, 6]
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.parametrize("damage", ["altered", "cut short", "without a record"])
def test_what_is_there_is_checked_before_a_job_goes_on(writer, whole, tmp_path, monkeypatch, damage):
    names = writer().make(0, 1)
    shard = writer().state / names[1]
    if damage == "without a record":
        shard.with_suffix(".json").unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content if damage == "altered" else content[:-1])
    rows = made(monkeypatch)
    writer().gather(tmp_path / "out")
    assert rows == [2]
    assert files(tmp_path / "out") == files(whole)


def test_what_another_job_has_checked_is_not_hashed_again_but_must_be_there(writer, tmp_path, monkeypatch):
    names = writer().make(0, 1)
    monkeypatch.setattr("matvlm.distill.cache.write.file_hash", lambda _: "another")
    rows = made(monkeypatch)
    (writer().state / names[-1]).unlink()
    writer().gather(tmp_path / "out", names)
    assert rows == [2 * SHARDS - 2]


def test_a_record_of_another_shard_does_not_stand_in(writer, whole, tmp_path, monkeypatch):
    """Though both are as long, and nobody hashes them again."""
    names = writer().make(0, 1)
    first, second = (writer().state / name for name in names[:2])
    shutil.copy(first, second)
    shutil.copy(first.with_suffix(".json"), second.with_suffix(".json"))
    rows = made(monkeypatch)
    writer().gather(tmp_path / "out", names)
    assert rows == [2]
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.parametrize(
    "changes",
    [{"mode": "topk", "top_k": 4}, {"mode": "topk", "tail_draws": 2}, {"dtype": "bfloat16"}, {"layers": [1]}],
)
def test_what_was_begun_for_another_cache_is_not_gone_on_with(writer, monkeypatch, changes):
    writer().make(0, 1)
    rows = made(monkeypatch)
    writer(**changes).make(0, 1)
    assert len(rows) == SHARDS


def test_the_command_in_parts(small, debug, whole, tmp_path, capsys):
    base = ["--settings", debug.cache.model_copy(update={"shard_size": 2}).model_dump_json(), "--device", "cpu"]
    base += ["--max-length", "448", "--teacher", str(small / "teacher"), "--state", str(tmp_path / "s")]
    base += ["--data", str(small / "data" / "distill")]
    records = [str(tmp_path / f"{part}.json") for part in range(2)]
    for part, record in enumerate(records):
        assert command.main([*base, "--part", f"{part}/2", "--out", record]) == 0
    out = ["--out", str(tmp_path / "out")]
    assert command.main([*base, "--parts", *records, *out]) == 0
    assert files(tmp_path / "out") == files(whole)

    (tmp_path / "bad.json").write_text("[]")
    wrong = {
        "--part: '2/2' is not I/N": ["--part", "2/2"],
        "bad.json: not a record of --part": ["--parts", str(tmp_path / "bad.json")],
        "--layers: 4 is out of range; ": ["--layers", "0", "4"],
    }
    for words, options in wrong.items():
        assert command.main([*base, *out, *options]) == 2
        assert words in capsys.readouterr().err
    assert files(tmp_path / "out") == files(whole)


def test_an_online_cache_is_a_manifest(writer, tmp_path):
    writer(mode="online").gather(tmp_path / "out")
    assert list(files(tmp_path / "out")) == ["manifest.json"]
    assert len(CacheReader(tmp_path / "out", {})) == 0


def test_the_states_of_some_layers_alone(writer, whole, tmp_path):
    writer(layers=[0, 2]).gather(tmp_path / "some")
    some, every = CacheReader(tmp_path / "some", {}), CacheReader(whole, {})
    assert some.manifest["points"] == [0, 1, 2, 3]
    some.require([0, 1, 2])
    found, expected = (reader.read(np.array([5, 2]), Needs((0, 3), True), 440, CPU) for reader in (some, every))
    for point in (0, 3):
        assert torch.equal(found["states"][point], expected["states"][point])
    writer(layers=[]).gather(tmp_path / "none")
    assert "states" not in load_file(tmp_path / "none" / "shard-00000.safetensors")
    CacheReader(tmp_path / "none", {}).check()
    with pytest.raises(UserError, match=r"none: has no states of layer 2, but of none; make the cache again"):
        CacheReader(tmp_path / "none", {}).require([2, 3])


def test_a_cell_whose_layers_were_not_cached(small, writer, tmp_path, capsys, monkeypatch):
    """It is told before any model is read; one whose layers were cached, or that compares none, is trained."""
    writer(layers=[0, 2]).gather(tmp_path / "some")
    end = {"init_dir": small / "init" / "attention-end-50", "layout": "end-50", "cache": tmp_path / "some"}
    with monkeypatch.context() as patch:
        patch.delattr(run, "load_model")
        words = ["has no states of layer 3, but of layers 0, 1, 2", "cache.states: all"]
        fails(capsys, words, arguments(small, tmp_path / "out", **end), tmp_path / "out")
    assert run.main(arguments(small, tmp_path / "prob", **end, loss="prob")) == 0


def test_a_cell_gives_the_same_from_needed_states(small, whole, writer, tmp_path):
    writer(layers=[0, 2]).gather(tmp_path / "some")
    for name in ("whole", "some"):
        assert run.main(arguments(small, tmp_path / "runs" / name / "out", cache=tmp_path / name)) == 0
    assert log_of(tmp_path / "runs" / "whole" / "out") == log_of(tmp_path / "runs" / "some" / "out")


def another_teacher(small, folder, part: str):
    """A teacher that differs in one thing."""
    shutil.copytree(small / "teacher", folder)
    name = {"tokenizer": "tokenizer_config.json", "image": "processor_config.json", "teacher": "config.json"}[part]
    content = json.loads((folder / name).read_text())
    if part == "tokenizer":
        content["unk_token"] = "<pad>"
    elif part == "image":
        content["image_processor"]["size"] = {"height": 32, "width": 32}
    else:
        content["text_config"]["layer_norm_eps"] *= 2
    (folder / name).write_text(json.dumps(content))
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(record | {"files": hash_files(folder)}))
    return folder


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("teacher", "made with teacher_hash"),
        ("tokenizer", "made with tokenizer_hash"),
        ("image", "made with image_size '64x64', but '32x32' is asked for"),
        ("prompt", "made with prompt_hash"),
    ],
)
def test_a_cache_of_something_else(small, cache, tmp_path, capsys, monkeypatch, part, words):
    """The one line names what differs, and the cache stays."""
    before, options = files(cache), {}
    if part == "prompt":
        monkeypatch.setattr(render, "SYSTEM", "A chat.")
    else:
        options["teacher"] = another_teacher(small, tmp_path / "teacher", part)
    argv = arguments(small, tmp_path / "out", **options)
    fails(capsys, [str(cache), words, "make the cache again"], argv, tmp_path / "out")
    assert files(cache) == before


@pytest.mark.parametrize("changes", [{}, {"mode": "topk", "top_k": 5, "tail_draws": 3, "dtype": "bfloat16"}])
def test_whole_shards_hold_what_mapped_ones_do(writer, tmp_path, changes):
    writer(**changes).gather(tmp_path / "out")
    mapped, read = CacheReader(tmp_path / "out", {}), CacheReader(tmp_path / "out", {}, whole=True)
    for rows in ([0, 1, 7], [6, 2]):
        found, expected = (one.read(np.array(rows), Needs((1, 2), True), 440, CPU) for one in (read, mapped))
        assert torch.equal(found["vision"], expected["vision"])
        assert all(torch.equal(found["states"][point], expected["states"][point]) for point in (1, 2))
        scores = [one["scores"](torch.tensor([3, 441])) for one in (found, expected)]
        if changes:
            assert scores[0].drawn_indices.shape == (2, 3)
            assert all(torch.equal(*pair) for pair in zip(*(vars(s).values() for s in scores), strict=True))
        else:
            assert torch.equal(*scores)


def test_an_order_by_blocks_opens_each_shard_once_an_epoch(whole, monkeypatch):
    opened: list[int] = []
    load = CacheReader._load
    monkeypatch.setattr(CacheReader, "_load", lambda self, index: opened.append(index) or load(self, index))
    reader, order = CacheReader(whole, {}, whole=True), Order(np.arange(8), 3, seed=0, block=2)
    for step in range(8):
        reader.read(order(step), Needs(), 440, CPU)
        assert len(reader._open) <= HELD
    assert Counter(opened[:SHARDS]) == Counter(range(SHARDS))
    assert len(opened) <= 3 * SHARDS


def test_a_whole_shard_that_was_altered(whole):
    shard = sorted(whole.glob("shard-*"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="cut short or altered"):
        CacheReader(whole, {}, whole=True).read(np.array([0]), Needs(), 440, CPU)


def test_a_run_by_blocks_sees_what_one_with_an_online_teacher_sees(small, cache, tmp_path, capsys):
    settings = {"shuffle_block": 4}
    assert run.main(arguments(small, tmp_path / "c" / "out", settings=settings)) == 0
    online = {"cache": None, "cache_settings": None}
    assert run.main(arguments(small, tmp_path / "o" / "out", settings=settings, **online)) == 0
    for mine, theirs in zip(log_of(tmp_path / "c" / "out"), log_of(tmp_path / "o" / "out"), strict=True):
        assert mine["tokens"] == theirs["tokens"]
        assert float(mine["loss"] or 0) == pytest.approx(float(theirs["loss"] or 0), rel=1e-3)
    capsys.readouterr()
    argv = arguments(small, tmp_path / "out", settings={"shuffle_block": 3})
    fails(capsys, ["distill.shuffle_block: 3", "is not the size of a shard", "4"], argv, tmp_path / "out")
