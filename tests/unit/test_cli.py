"""The command `matvlm`: it starts at once, and says in one line what a path holds or what is wrong with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

from matvlm import cli
from matvlm.provenance import file_hash

ROOT = Path(__file__).parents[2]
PARAMS = str(ROOT / "params.yaml")


def check(capsys, *words) -> tuple[int, list[str]]:
    """Exit status and lines of `matvlm check`."""
    status = cli.main(["check", *map(str, words)])
    printed = capsys.readouterr()
    assert printed.err == ""
    return status, printed.out.splitlines()


def refused(capsys, path, *words) -> str:
    status, lines = check(capsys, path, *words)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {path}")
    return lines[0]


def test_it_is_the_console_script():
    (script,) = (entry for entry in entry_points(group="console_scripts") if entry.name == "matvlm")
    assert script.load() is cli.main


@pytest.mark.parametrize(
    "words",
    [["--help"], ["check", "--help"], ["convert", "--help"], ["plan", "--help"], ["plan", "--params", "none"]],
)
def test_help_and_mistakes_come_at_once(words):
    """Without torch, whose import alone takes seconds."""
    program = (
        "import sys; from matvlm import cli\ntry:\n    cli.main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert time.perf_counter() - start < 3
    assert "AssertionError" not in done.stderr
    assert "usage: matvlm" in done.stdout or done.stderr.startswith("error: none: No such file")


@pytest.mark.parametrize("words", [[], ["generat"], ["check"], ["plan", "--presett", "tiny"]])
def test_a_wrong_command_line(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: matvlm" in capsys.readouterr().err


def test_what_is_sound(capsys, small, cache):
    paths = [PARAMS, small / "teacher", small / "init" / "attention-even-50", cache]
    status, lines = check(capsys, *paths)
    assert status == 0
    assert [line.partition(": ")[0] for line in lines] == ["ok"] * 4
    assert all(str(path) in line for path, line in zip(paths, lines, strict=True))
    assert "presets tiny" in lines[0]
    assert lines[1].endswith("weights")
    assert "student, 2 of 4 layers Mamba-2" in lines[2]
    assert "cache, full, 8 conversations in 2 shards" in lines[3]


def test_one_line_a_path_though_some_are_wrong(capsys, tmp_path):
    status, lines = check(capsys, tmp_path / "none.yaml", PARAMS, tmp_path)
    assert status == 2
    assert [line.partition(": ")[0] for line in lines] == ["error", "ok", "error"]
    assert "No such file" in lines[0]
    assert "neither a cache (manifest.json) nor a model" in lines[2]


def test_a_configuration_with_a_mistake(capsys, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(Path(PARAMS).read_text().replace("preset: tiny", "preset: large"))
    assert "preset: 'large' is unknown; allowed: tiny" in refused(capsys, path)


@pytest.fixture
def broken(cache, tmp_path):
    return shutil.copytree(cache, tmp_path / "cache")


@pytest.mark.parametrize("number", [0, 1])
def test_every_shard_of_a_cache_is_checked(capsys, broken, number):
    shard = sorted(broken.glob("*.safetensors"))[number]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    error = refused(capsys, broken)
    assert shard.name in error
    assert "altered" in error
    shard.unlink()
    assert f"{shard.name}: missing" in refused(capsys, broken)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("{", "missing or not JSON"),
        ("[]", "not a cache of format 2"),
        ("{}", "not a cache of format 2"),
        ('{"format": 2}', "rows, shards or points missing"),
        ('{"format": 2, "rows": ["a"], "shards": []}', "rows, shards or points missing"),
        ('{"format": 2, "mode": "full", "rows": [4], "shards": [], "points": []}', "shards have 0 rows, not 1"),
    ],
)
def test_a_manifest_that_is_none(capsys, broken, manifest, words):
    (broken / "manifest.json").write_text(manifest)
    assert words in refused(capsys, broken)


@pytest.mark.parametrize("key", ["rows", "file", "sha256"])
def test_a_manifest_whose_shards_lack_something(capsys, broken, key):
    manifest = json.loads((broken / "manifest.json").read_text())
    del manifest["shards"][0][key]
    (broken / "manifest.json").write_text(json.dumps(manifest))
    assert "rows, shards or points missing or not as written" in refused(capsys, broken)


def test_a_manifest_that_contradicts_its_shards(capsys, broken):
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["rows"][-1] += 1
    (broken / "manifest.json").write_text(json.dumps(manifest))
    assert "positions, not the" in refused(capsys, broken)


def test_a_model_that_is_not_whole(capsys, small, tmp_path):
    folder = shutil.copytree(small / "teacher", tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors: cut short or altered" in refused(capsys, folder)
    record = json.loads((folder / "provenance.json").read_text())
    record["files"][weights.name] = file_hash(weights)
    (folder / "provenance.json").write_text(json.dumps(record))
    refused(capsys, folder)  # the hash is right, the file is no model all the same
    (folder / "provenance.json").unlink()
    assert "provenance.json: missing" in refused(capsys, folder)


def test_a_model_without_its_tokenizer(capsys, small, tmp_path):
    folder = shutil.copytree(small / "teacher", tmp_path / "model")
    (folder / "processor_config.json").unlink()
    assert "processor" in refused(capsys, folder)


def row(name, image="a.png", question="<image>\nwhat?", answer="a cat"):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": turns}


@pytest.fixture
def conversations(tmp_path):
    """Writes a conversation file beside `a.png`, or elsewhere."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])

    def write(*rows, folder="."):
        path = tmp_path / folder / "rows.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
        return path

    return write


def test_conversations(capsys, conversations, tmp_path):
    path = conversations(row("1"), row("2"))
    assert check(capsys, path) == (0, [f"ok: {path}: 2 conversations"])
    path = conversations(row("1"), folder="elsewhere")
    assert "1 of 1 rows cannot be used" in refused(capsys, path)
    assert check(capsys, path, "--images", tmp_path)[0] == 0


def test_bad_rows_are_counted_and_reported(capsys, conversations, tmp_path):
    bad = [row("2", "cut.png"), row("3", "none.png"), row("4", answer=" "), row("5", answer="")]
    path, report = conversations(row("1"), *bad), tmp_path / "out" / "report.json"
    error = refused(capsys, path, "--report", report)
    assert "4 of 5 rows cannot be used (image 2, conversations 2); the first: row 1: image: " in error
    written = json.loads(report.read_text())
    assert (written["total"], written["good"], written["rejected"]) == (5, 1, 4)
    assert [item["id"] for item in written["rows"]] == ["2", "3", "4", "5"]
    assert written["reasons"]["conversations[1].value: is an empty answer"] == 2


def test_a_report_of_no_bad_row(capsys, conversations, tmp_path):
    assert check(capsys, conversations(row("1")), "--report", tmp_path / "report.json")[0] == 0
    assert json.loads((tmp_path / "report.json").read_text())["rejected"] == 0


def test_a_report_needs_one_conversation_file(capsys, tmp_path):
    assert cli.main(["check", PARAMS, "--report", str(tmp_path / "report.json")]) == 2
    assert "one conversation file, not of 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"), [("{", "not JSON"), ("{}", "must hold a list"), ("[]", "none of its 0")]
)
def test_a_file_that_holds_no_conversations(capsys, tmp_path, content, words):
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert words in refused(capsys, path)


def test_the_plan_of_a_preset(capsys):
    assert cli.main(["plan", "--params", PARAMS, "--preset", "debug"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("preset debug: ")
    assert "attention/even-25/prob+layer+ce/kl" in printed


def test_the_plan_of_an_unknown_preset(capsys):
    assert cli.main(["plan", "--params", PARAMS, "--preset", "large"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --preset large: unknown; allowed: tiny")
    assert error.count("\n") == 1


def test_a_file_without_a_sound_row_is_reported_too(tmp_path, capsys):
    path, report = tmp_path / "all.json", tmp_path / "report.json"
    path.write_text(json.dumps([{"id": 1, "image": "../x.png", "conversations": []}]))
    assert cli.main(["check", str(path), "--images", str(tmp_path), "--report", str(report)]) == 2
    assert "1 of 1 rows cannot be used" in capsys.readouterr().out
    assert json.loads(report.read_text())["rejected"] == 1
