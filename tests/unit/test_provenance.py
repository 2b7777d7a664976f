"""Where a number comes from: hashes that change with what they cover, and the state of the repository."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time

import pytest

from matvlm import provenance


@pytest.fixture(autouse=True)
def no_named_commit(monkeypatch):
    monkeypatch.delenv("MATVLM_COMMIT", raising=False)


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit of `code.py` and `results/table.md`."""
    (tmp_path / "results").mkdir()
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "results" / "table.md").write_text("1\n")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)
    return tmp_path


def test_a_clean_repository(repository):
    commit, dirty = provenance.git_state(repository)
    assert len(commit) == 40
    assert dirty is False


@pytest.mark.parametrize(
    ("name", "dirty"),
    [("code.py", True), ("results/table.md", False), ("new.py", False), ("results/new.md", False)],
)
def test_results_and_files_that_git_does_not_know_do_not_make_it_dirty(repository, name, dirty):
    (repository / name).write_text("changed\n")
    assert provenance.git_state(repository)[1] is dirty


def test_a_staged_change_and_a_removed_file_make_it_dirty(repository):
    (repository / "code.py").unlink()
    assert provenance.git_state(repository)[1] is True
    subprocess.run(["git", "-C", repository, "add", "."], check=True)
    assert provenance.git_state(repository)[1] is True


def test_a_folder_without_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state(tmp_path) == ("", None)
    monkeypatch.setenv("MATVLM_COMMIT", "abc")
    assert provenance.git_state(tmp_path) == ("abc", False)
    monkeypatch.setenv("MATVLM_COMMIT", "abc-dirty")
    assert provenance.git_state(tmp_path) == ("abc", True)


def test_without_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    assert provenance.git_state(repository) == ("", None)


def test_a_files_hash(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert provenance.file_hash(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_hash_of_settings_is_of_their_content():
    one = provenance.settings_hash({"a": 1, "b": [1.5, None]})
    assert one == provenance.settings_hash({"b": [1.5, None], "a": 1})
    assert len(one) == 16
    others = [{"a": 2, "b": [1.5, None]}, {"a": 1, "b": [None, 1.5]}, {"a": 1}, {"a": "1", "b": [1.5, None]}]
    assert len({one, *map(provenance.settings_hash, others)}) == 5


def test_a_models_hash_is_of_its_weights_configuration_and_tokenizer(tmp_path):
    def hash_of(**files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_bytes(content)
        return provenance.model_hash(folder)

    one = hash_of(a_safetensors=b"1", b_safetensors=b"2")
    assert one == hash_of(b_safetensors=b"2", a_safetensors=b"1", provenance_json=b"{}", log_csv=b"")
    assert one != hash_of(a_safetensors=b"1", b_safetensors=b"2", config_json=b"{}")
    assert one != hash_of(a_safetensors=b"1", b_safetensors=b"2", tokenizer_json=b"{}")
    assert one != hash_of(a_safetensors=b"2", b_safetensors=b"1")
    assert one != hash_of(a_safetensors=b"1")
    assert one != hash_of(a_safetensors=b"1", c_safetensors=b"2")


def test_datas_hash_is_of_its_report(tmp_path):
    assert provenance.data_hash(tmp_path) == ""
    (tmp_path / "report.json").write_text("{}")
    assert provenance.data_hash(tmp_path) == provenance.file_hash(tmp_path / "report.json")[:16]


def test_a_description_has_all_columns_and_is_the_same_when_repeated(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = provenance.describe({"steps": 3}, data=tmp_path, teacher=tmp_path)
    assert tuple(first) == provenance.COLUMNS
    assert first == provenance.describe({"steps": 3}, data=tmp_path, teacher=tmp_path)
    assert first["data_hash"]
    assert first["teacher_hash"]
    assert first["torch"].startswith("2.")
    assert first["device"].startswith("cpu ")
    assert first["kernel_path"] == "torch"
    assert json.loads(json.dumps(first)) == first
    without = provenance.describe({"steps": 4})
    assert (without["data_hash"], without["teacher_hash"]) == ("", "")
    assert without["config_hash"] != first["config_hash"]


def test_a_package_that_is_not_installed_has_no_version():
    assert provenance._version("no-such-package-of-matvlm") == ""


def test_a_cost():
    cost = provenance.Cost()
    time.sleep(0.02)
    found = cost.finish()
    assert tuple(found) == provenance.COST_COLUMNS
    assert 0.02 <= found["wall_s"] < 5
    assert found["gpu_s"] == 0
    assert 10_000_000 < found["peak_memory_bytes"] < 10**12
    cost.before_s = 100.0
    assert 100 < cost.finish()["wall_s"] < 105
