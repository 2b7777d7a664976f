"""The generated schema and documentation: up to date, and in agreement with what `load_config` accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from test_config import BAD, BAD_RANDOM, CONFIG, DROP, PRESET, RANDOM, changed

from matvlm import schema
from matvlm.config import ConfigError, load_config

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "params.yaml").read_text())
BY_ONE_KEY = ("unknown key", "required", "integer", "number", "mapping", "empty", "list", "boolean", "not '")
"""Words of the mistakes that one key alone shows, which the schema has to find too."""


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    made = json.loads((ROOT / schema.SCHEMA).read_text())
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def test_generated_files_are_up_to_date(capsys):
    """If this fails: python -m matvlm.schema"""
    assert schema.main(["--check", "--root", str(ROOT)]) == 0, capsys.readouterr().err


def test_check_names_the_stale_file(tmp_path, capsys):
    assert schema.main(["--root", str(tmp_path)]) == 0
    assert schema.main(["--check", "--root", str(tmp_path)]) == 0
    path = tmp_path / schema.DOCS
    path.write_text(path.read_text().replace("| `preset` |", "| `presett` |"))
    capsys.readouterr()
    assert schema.main(["--check", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == "error: docs/configuration.md: stale; run python -m matvlm.schema\n"
    assert "presett" in path.read_text()  # it only checks
    (tmp_path / schema.SCHEMA).unlink()
    assert schema.main(["--check", "--root", str(tmp_path)]) == 1
    assert "params.schema.json and docs/configuration.md" in capsys.readouterr().err


def test_the_file_of_the_repository_validates(validator):
    assert [*validator.iter_errors(FILE)] == []


@pytest.mark.parametrize("name", FILE["presets"])
def test_each_preset_alone_validates(validator, name):
    alone = FILE | {"preset": name, "presets": {name: FILE["presets"][name]}}
    assert load_config(alone).preset == name
    assert [*validator.iter_errors(alone)] == []


@pytest.mark.parametrize("ablation", [DROP, {}, {"seeds": [3]}, {"grid": True, "layouts": ["0,1"]}])
def test_a_preset_may_name_any_of_its_axes(validator, ablation):
    data = yaml.safe_load(CONFIG) | {"presets": {"tiny": yaml.safe_load(PRESET)}}
    if ablation is not DROP:
        data = changed(data, "presets.tiny.ablation", ablation)
    load_config(data)
    assert [*validator.iter_errors(data)] == []


@pytest.mark.parametrize(("key", "value", "words"), [(key, value, words) for key, value, _, words in BAD])
def test_the_schema_finds_what_one_key_shows(validator, key, value, words):
    data = yaml.safe_load(CONFIG) | {"presets": {name: yaml.safe_load(PRESET) for name in ("tiny", "debug")}}
    errors = [*validator.iter_errors(changed(data, key, value))]
    if any(word in BY_ONE_KEY for word in words):
        assert errors


@pytest.mark.parametrize(("key", "value", "start", "words"), BAD_RANDOM)
def test_the_schema_knows_presets_that_only_measure(validator, key, value, start, words):
    data = yaml.safe_load(CONFIG) | {"presets": {"tiny": yaml.safe_load(RANDOM)}}
    assert [*validator.iter_errors(data)] == []
    errors = [*validator.iter_errors(changed(data, f"presets.tiny.{key}", value))]
    if any(word in BY_ONE_KEY or "allowed:" in word for word in words):
        assert errors


def leaves(data: dict, way: str = "") -> list[str]:
    """The keys of all values in a nested mapping, inner mappings included."""
    found = []
    for key, value in data.items():
        found += [f"{way}{key}", *(leaves(value, f"{way}{key}.") if isinstance(value, dict) else [])]
    return found


WHOLE = yaml.safe_load(CONFIG) | {"presets": {"tiny": yaml.safe_load(PRESET), "big": yaml.safe_load(RANDOM)}}
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, 2, 8.0, 0.5, -1, "1", "full", "train", "topk", "even-50", "0,1", ""]
    ),
    st.lists(st.sampled_from([0, 1, 2.0, 25, "ce", "kl", "random", "even-25", "end-50.0", None]), max_size=3),
    st.just({}),
)


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(leaves(WHOLE)), value=VALUES)
def test_what_load_config_accepts_the_schema_accepts(key, value):
    data = changed(WHOLE, key, value)
    try:
        load_config(data)
    except ConfigError:
        return
    assert [*Draft202012Validator(schema.make_schema()).iter_errors(data)] == []


def test_every_key_is_documented():
    made = schema.make_schema()
    docs = (ROOT / schema.DOCS).read_text()
    for definition in (made, *made["$defs"].values()):
        for key, value in definition["properties"].items():
            assert f"| `{key}` |" in docs
            meaning = schema._meaning(made, value)
            assert len(meaning) > 3, key
            assert meaning in docs, key
    rows = [line for line in docs.splitlines() if line.startswith("|")]
    assert {row.count(" | ") for row in rows} == {3}
    headings = [line for line in docs.splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings))


def test_links_lead_to_headings():
    docs = (ROOT / schema.DOCS).read_text()
    anchors = {
        re.sub(r"[^\w\- ]", "", line[3:].lower()).replace(" ", "-")
        for line in docs.splitlines()
        if line.startswith("## ")
    }
    links = re.findall(r"\]\(#([^)]*)\)", docs)
    assert len(links) > 10
    assert set(links) <= anchors
