"""Batches: the one held in memory equals the one read from disk, and both equal each row on its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from matvlm import cli
from matvlm.config import EmbeddedData
from matvlm.data.conversations import load_conversations, turns_of
from matvlm.data.dataset import load_questions, load_split, rows_too_long
from matvlm.data.errors import DataError
from matvlm.data.images import open_image
from matvlm.data.prepare import prepare
from matvlm.data.processor import build_processor
from matvlm.data.render import render_conversation, render_prompt
from matvlm.data.sort_of_clevr import CAPTION_QUESTION
from matvlm.data.tokenizer import build_tokenizer

LENGTH = 448
TENSORS = ("input_ids", "attention_mask", "labels", "pixel_values")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "val"
    size = {"easy_vqa": 3, "sort_of_clevr": 5}
    prepare(EmbeddedData(splits=dict.fromkeys(("train", "distill", "val", "test"), size)), "val", folder)
    return folder


@pytest.fixture(scope="module")
def processor():
    return build_processor(build_tokenizer(), image_size=32, patch_size=8)


@pytest.fixture(scope="module")
def in_memory(split, processor):
    return load_split(split, processor, LENGTH)


def answers_of(ids, labels, tokenizer):
    """(text before, answer) of each run of labels in a row, in order; text before starts at `USER:`."""
    found, before, answer = [], [], []
    for token, label in zip(ids.tolist(), labels.tolist(), strict=True):
        if label == -100:
            before.append(token)
            continue
        answer.append(token)
        if token == tokenizer.eos_token_id:
            text = tokenizer.decode(before)
            found.append((text[text.index("USER:") :], tokenizer.decode(answer[:-1])))
            before, answer = [], []
    return found


def test_a_batch_is_each_row_padded(in_memory, split, processor):
    rows, _ = load_conversations(split / "conversations.json", split, check_images=False)
    batch = in_memory.batch(range(len(rows)))
    for place, row in enumerate(rows):
        ids, labels = render_conversation(turns_of(row), processor.tokenizer, 16, LENGTH)
        size = len(ids)
        assert batch["attention_mask"][place].tolist() == [1] * size + [0] * (batch["input_ids"].shape[1] - size)
        assert batch["input_ids"][place, :size].tolist() == ids
        assert batch["labels"][place, :size].tolist() == labels
        assert (batch["input_ids"][place, size:] == processor.tokenizer.pad_token_id).all()
        assert (batch["labels"][place, size:] == -100).all()
        image = processor.image_processor(open_image(row["image"], split), return_tensors="pt")
        # To the rounding of the pixels' last bit: one divides before it subtracts.
        torch.testing.assert_close(batch["pixel_values"][place], image["pixel_values"][0], rtol=0, atol=1e-6)
        assert (batch["ids"][place], batch["lengths"][place]) == (row["id"], size)
    assert batch["tokens"] == int(batch["attention_mask"].sum())
    assert batch["answers"] == int((batch["labels"] != -100).sum())


def test_shuffled_turns_keep_answers_and_captions_in_place(in_memory, processor):
    """The same questions with the same answers; a caption first; and not always in the same order."""
    tokenizer, rows = processor.tokenizer, range(len(in_memory))
    plain = in_memory.batch(rows)
    mixed = in_memory.batch(rows, rng=np.random.default_rng(0), shuffle_turns=True)
    again = in_memory.batch(rows, rng=np.random.default_rng(0), shuffle_turns=True)
    assert all(torch.equal(mixed[name], again[name]) for name in TENSORS)
    moved = 0
    for place, name in enumerate(in_memory.ids):
        before, after = (answers_of(b["input_ids"][place], b["labels"][place], tokenizer) for b in (plain, mixed))
        images = [text.count("<image>") for text, _ in after]
        assert images == [16] + [0] * (len(after) - 1)
        bare = [
            [(text.replace("<image>", "").split(), answer) for text, answer in turns] for turns in (before, after)
        ]
        assert sorted(bare[0]) == sorted(bare[1])
        assert (CAPTION_QUESTION in after[0][0]) == name.startswith("sort_of_clevr")
        moved += bare[0] != bare[1]
    assert moved > len(in_memory) // 2


def test_dropped_captions(in_memory, processor):
    batch = in_memory.batch(range(len(in_memory)), rng=np.random.default_rng(0), drop_caption=1.0)
    plain = in_memory.batch(range(len(in_memory)))
    for place, name in enumerate(in_memory.ids):
        kept, whole = (
            answers_of(b["input_ids"][place], b["labels"][place], processor.tokenizer) for b in (batch, plain)
        )
        assert not any(CAPTION_QUESTION in text for text, _ in kept)
        assert len(kept) == len(whole) - name.startswith("sort_of_clevr")
        assert [answer for _, answer in kept] == [answer for _, answer in whole][-len(kept) :]


def test_only_easy_vqa_is_mirrored(in_memory):
    plain = in_memory.batch(range(len(in_memory)))["pixel_values"]
    flipped = in_memory.batch(range(len(in_memory)), rng=np.random.default_rng(0), flip=1.0)["pixel_values"]
    for place, name in enumerate(in_memory.ids):
        expected = plain[place].flip(-1) if name.startswith("easy_vqa") else plain[place]
        assert torch.equal(flipped[place], expected)
    assert torch.equal(in_memory.batch(range(len(in_memory)))["pixel_values"], plain), "the data itself changed"


def test_only_easy_vqa_is_shifted(in_memory):
    """By the same number of pixels everywhere, the border repeated: as a crop of the image with a wider border."""
    rows, shift = range(len(in_memory)), 5
    plain = in_memory.batch(rows)["pixel_values"]
    shifted = in_memory.batch(rows, rng=np.random.default_rng(0), shift=shift)["pixel_values"]
    wide = torch.nn.functional.pad(plain, (shift,) * 4, mode="replicate")
    size, found = plain.shape[-1], set()
    for place, name in enumerate(in_memory.ids):
        crops = {
            (down - shift, across - shift): wide[place, :, down : down + size, across : across + size]
            for down in range(2 * shift + 1)
            for across in range(2 * shift + 1)
        }
        moves = {move for move, crop in crops.items() if torch.equal(crop, shifted[place])}
        if name.startswith("easy_vqa"):
            assert moves
            found |= moves
        else:
            assert (0, 0) in moves
    assert len(found) > 1


@pytest.mark.parametrize("option", [{"shuffle_turns": True}, {"drop_caption": 0.5}, {"flip": 0.5}, {"shift": 1}])
def test_variation_needs_random_numbers(option, in_memory):
    with pytest.raises(ValueError, match="rng"):
        in_memory.batch([0], **option)


def test_a_length_limit_cuts_answers_on_the_right(split, processor):
    whole, cut = load_split(split, processor, LENGTH).batch([0, 1]), load_split(split, processor, 60).batch([0, 1])
    assert cut["input_ids"].shape == (2, 60)
    assert torch.equal(cut["labels"], whole["labels"][:, :60])
    with pytest.raises(DataError, match="none has an answer within 30 tokens"):
        load_split(split, processor, 30)


def test_rows_too_long_are_reported(split, processor):
    """Where the first answer begins differs between questions: some rows fit, the others are named."""
    rows, _ = load_conversations(split / "conversations.json", split, check_images=False)
    starts = []
    for row in rows:
        _, labels = render_conversation(turns_of(row), processor.tokenizer, 16, LENGTH)
        starts.append(next(i for i, label in enumerate(labels) if label != -100))
    room = sorted(set(starts))[1]
    rejected = rows_too_long(rows, processor.tokenizer, 16, room)
    long = [i for i, start in enumerate(starts) if start >= room]
    assert 0 < len(long) < len(rows)
    assert [item["row"] for item in rejected] == long
    assert all(f"within {room} tokens" in item["reason"] for item in rejected)
    with pytest.raises(DataError, match=rf"conversations.json: {len(long)} bad rows; {rows[long[0]]['id']}: conv"):
        load_split(split, processor, room)


def test_questions_are_asked_one_by_one(split, processor):
    asked = [json.loads(line) for line in (split / "questions.jsonl").read_text().splitlines()]
    tasks = load_questions(split, processor, LENGTH)
    assert {name: len(data) for name, data in tasks.items()} == {
        name: sum(row["task"] == name for row in asked) for name in {row["task"] for row in asked}
    }
    for name, data in tasks.items():
        rows = [row for row in asked if row["task"] == name]
        batch = data.batch(range(len(rows)))
        for place, row in enumerate(rows):
            learnt = batch["labels"][place]
            start = int((learnt != -100).int().argmax())
            prompt = processor.tokenizer(render_prompt(row["question"], 16))["input_ids"]
            assert batch["input_ids"][place, :start].tolist() == prompt
            assert processor.tokenizer.decode(learnt[learnt != -100][:-1]) == row["answer"]


def broken_split(split, tmp_path, change):
    rows = json.loads((split / "conversations.json").read_text())
    change(rows)
    (tmp_path / "conversations.json").write_text(json.dumps(rows))
    (tmp_path / "images").symlink_to(split / "images")
    return tmp_path


def test_a_split_with_a_bad_row_is_refused(split, processor, tmp_path, monkeypatch):
    """What we prepared has no bad rows, so one means damage, and none is left out in silence."""
    folder = broken_split(split, tmp_path, lambda rows: rows[2]["conversations"].pop())
    with pytest.raises(
        DataError, match=r"conversations.json: 1 bad rows; \w+: conversations: ends with a question"
    ) as caught:
        load_split(folder, processor, LENGTH)
    command = f"matvlm check {folder}/conversations.json --images {folder} --report bad_rows.json"
    assert str(caught.value).endswith(command)
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()[1:]) == 2
    listed = json.loads((tmp_path / "bad_rows.json").read_text())["rows"]
    assert [row["row"] for row in listed if row["field"] == "conversations"] == [2]


def test_a_split_without_an_image_is_refused(split, processor, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "conversations.json").write_bytes((split / "conversations.json").read_bytes())
    with pytest.raises(DataError, match=r"image 'images/.*png': no such file") as caught:
        load_split(tmp_path, processor, LENGTH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"id": 1}', "\xff"])
def test_questions_that_are_none(text, processor, tmp_path):
    (tmp_path / "questions.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"questions\.jsonl") as caught:
        load_questions(tmp_path, processor, LENGTH)
    assert "\n" not in str(caught.value)
