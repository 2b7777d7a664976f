"""Prepared splits: the same bytes for the same seed, no shared image, captions first, questions one by one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest
from PIL import Image

from matvlm.config import EmbeddedData, SplitSize
from matvlm.data import easy_vqa
from matvlm.data.conversations import load_conversations, turns_of
from matvlm.data.errors import DataError
from matvlm.data.prepare import ASKED, SPLITS, main, prepare
from matvlm.data.sort_of_clevr import CAPTION_QUESTION
from matvlm.provenance import file_hash

SIZES = {"train": (7, 40), "distill": (5, 30), "val": (3, 20), "test": (4, 30)}


def make_settings(seed=0, **sizes):
    splits = {
        name: SplitSize(easy_vqa=easy, sort_of_clevr=clevr) for name, (easy, clevr) in (SIZES | sizes).items()
    }
    return EmbeddedData(seed=seed, splits=splits)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Folder of each split."""
    root = tmp_path_factory.mktemp("splits")
    for split in SPLITS:
        prepare(make_settings(), split, root / split)
    return {split: root / split for split in SPLITS}


def file_hashes(folder):
    return {str(p.relative_to(folder)): file_hash(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def read_rows(folder):
    return json.loads((folder / "conversations.json").read_text(encoding="utf-8"))


def read_questions(folder):
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def pixel_hashes(folder):
    """By row id, the hash of its image's size and pixels."""
    hashes = {}
    for row in read_rows(folder):
        with Image.open(folder / row["image"]) as image:
            pixels = image.convert("RGB")
        hashes[row["id"]] = hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
    return hashes


@pytest.mark.parametrize("split", ["train", "test"])
def test_command_writes_the_same_bytes_with_any_number_of_workers(split, tmp_path):
    """600 scenes are three portions of work; workers are forked, so the command runs in its own process."""
    settings = make_settings(seed=5, **{split: (3, 600)}).model_dump_json()
    for workers in (1, 3):
        out = str(tmp_path / f"{workers}")
        words = ["--settings", settings, "--split", split, "--out", out, "--workers", str(workers)]
        subprocess.run([sys.executable, "-m", "matvlm.data.prepare", *words], check=True)
    alone = file_hashes(tmp_path / "1")
    assert len(alone) == 603 + (3 if split in ASKED else 2)
    assert alone == file_hashes(tmp_path / "3")


def test_seed_decides(splits, tmp_path):
    prepare(make_settings(), "val", tmp_path / "again")
    assert file_hashes(tmp_path / "again") == file_hashes(splits["val"])
    prepare(make_settings(seed=1), "val", tmp_path / "other")
    assert not set(pixel_hashes(tmp_path / "other").values()) & set(pixel_hashes(splits["val"]).values())


def test_splits_share_no_image(splits):
    hashes = {split: pixel_hashes(folder) for split, folder in splits.items()}
    for split, (easy, clevr) in SIZES.items():
        assert len(hashes[split]) == len(set(hashes[split].values())) == easy + clevr
    for one, other in combinations(SPLITS, 2):
        assert not hashes[one].keys() & hashes[other].keys()
        assert not set(hashes[one].values()) & set(hashes[other].values())


def test_easy_vqa_is_divided_once():
    """All 4,000 training images go to one split each, the package's test images to `test` alone."""
    sizes = {"train": 3000, "distill": 600, "val": 400, "test": 1000}
    names = {split: {p.name for p in easy_vqa.pick(split, 3, sizes)} for split in SPLITS}
    assert {split: len(found) for split, found in names.items()} == sizes
    assert len(names["train"] | names["distill"] | names["val"]) == 4000
    assert all(name.startswith("easy_vqa_test_") for name in names["test"])
    assert all(name.startswith("easy_vqa_train_") for name in names["train"] | names["distill"] | names["val"])


@pytest.mark.parametrize("kept", ["distill", "val", "test"])
def test_other_splits_stay_when_train_grows(kept):
    small = {"train": 50, "distill": 30, "val": 20, "test": 10}
    large = small | {"train": 3950}
    assert easy_vqa.pick(kept, 0, small) == easy_vqa.pick(kept, 0, large)


def test_more_images_than_the_package_has():
    with pytest.raises(DataError, match=r"4001 images; the package has 4000"):
        easy_vqa.pick("val", 0, {"train": 3000, "distill": 1000, "val": 1, "test": 1})


def test_questions_are_the_packages_own(splits):
    """Each picture has all of its questions, with the answers of the package, in its order."""
    import easy_vqa as package

    given = {}
    for question, answer, image in zip(*package.get_train_questions(), strict=True):
        given.setdefault(image, []).append((question, answer))
    rows = [row for row in read_rows(splits["train"]) if row["id"].startswith("easy_vqa")]
    assert len(rows) == SIZES["train"][0]
    for row in rows:
        first, *rest = turns_of(row)
        turns = [(first[0].removeprefix("<image>\n"), first[1]), *rest]
        assert turns == given[int(row["id"].rsplit("_", 1)[1])]


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_sound_and_captions_come_first(splits, split):
    rows, rejected = load_conversations(splits[split] / "conversations.json", splits[split], check_images=True)
    assert rejected == []
    assert len(rows) == sum(SIZES[split])
    for row in rows:
        questions = [question for question, _ in turns_of(row)]
        assert questions[0].startswith("<image>\n")
        clevr = row["id"].startswith("sort_of_clevr")
        assert (questions[0] == f"<image>\n{CAPTION_QUESTION}") == clevr
        assert not any(CAPTION_QUESTION in question for question in questions[1:])
        if clevr:
            assert len(set(questions)) == 21


@pytest.mark.parametrize("split", ASKED)
def test_questions_are_those_of_the_conversations(splits, split):
    asked = read_questions(splits[split])
    expected = Counter()
    for row in read_rows(splits[split]):
        for question, answer in turns_of(row):
            text = question.removeprefix("<image>\n")
            if text != CAPTION_QUESTION:
                expected[row["image"], text, answer] += 1
    assert Counter((row["image"], row["question"], row["answer"]) for row in asked) == expected
    assert len({row["id"] for row in asked}) == len(asked)


def test_questions_name_their_task(splits):
    for row in read_questions(splits["test"]):
        if row["id"].startswith("easy_vqa"):
            kind = "yesno" if row["answer"] in ("yes", "no") else "open"
            assert row["task"] == f"easy_vqa_{kind}"
        else:
            words = ("closest", "furthest", "how many")
            kind = "relational" if any(word in row["question"] for word in words) else "nonrelational"
            assert row["task"] == f"sort_of_clevr_{kind}"


def test_report_counts_and_hashes(splits):
    folder = splits["test"]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    tasks = Counter(row["task"] for row in read_questions(folder))
    easy, clevr = SIZES["test"]
    assert report["images"] == {"easy_vqa": easy, "sort_of_clevr": clevr}
    assert report["questions"] == {"caption": clevr, **tasks}
    assert report["sha256"]["conversations.json"] == file_hash(folder / "conversations.json")
    images = sorted(row["image"] for row in read_rows(folder))
    lines = "".join(f"{path} {file_hash(folder / path)}\n" for path in images)
    assert report["sha256"]["images"] == hashlib.sha256(lines.encode()).hexdigest()


def test_a_failure_leaves_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    words = ["--settings", make_settings().model_dump_json(), "--split", "val"]
    assert main([*words, "--out", str(tmp_path / "file" / "val")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--settings", '{"splits": {}}', "--split", "val", "--out", str(tmp_path / "val")]) == 2
    assert "splits lacks train" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
