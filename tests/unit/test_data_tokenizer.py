"""The word-level tokenizer: complete for all generated text, and a normal fast tokenizer on disk."""

from __future__ import annotations

import re

import easy_vqa
import pytest
from conversation_text import render_text
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from matvlm.data import sort_of_clevr as clevr
from matvlm.data.render import SYSTEM
from matvlm.data.tokenizer import EOS, PAD, UNKNOWN, build_tokenizer, main


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def conversations():
    """All of easy-VQA's questions and answers, and many scenes' turns."""
    sources = (easy_vqa.get_train_questions(), easy_vqa.get_test_questions())
    turns = {(q, a) for questions, answers, _ in sources for q, a in zip(questions, answers, strict=True)}
    found = [[(f"<image>\n{q}", a)] for q, a in sorted(turns)]
    for index in range(200):
        rng = clevr.scene_rng(11, 0, index)
        things = clevr.draw_scene(rng)
        questions = [(q.text, q.answer) for q in clevr.draw_questions(things, rng)]
        found.append([(f"<image>\n{clevr.CAPTION_QUESTION}", clevr.caption(things)), *questions])
    return found


def test_no_word_is_unknown(tokenizer, conversations):
    for turns in conversations:
        ids = tokenizer(render_text(turns, EOS))["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.pad_token_id not in ids


def test_a_word_is_a_token(tokenizer, conversations):
    """Captions and answers decode to themselves, and every answer but a caption is one token."""
    for turns in conversations:
        for question, answer in turns:
            ids = tokenizer(answer)["input_ids"]
            assert len(ids) == len(re.findall(r"\w+|[^\w\s]", answer))
            assert tokenizer.decode(ids) == answer
            assert len(ids) == 1 or clevr.CAPTION_QUESTION in question


def test_roles_and_special_tokens_are_one_token(tokenizer):
    for text in ("USER:", "ASSISTANT:", "<image>", EOS, PAD, UNKNOWN):
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == [text]
    words = tokenizer.convert_ids_to_tokens(tokenizer(f"{SYSTEM} USER: <image>\nyes")["input_ids"])
    assert words[-3:] == ["USER:", "<image>", "yes"]
    assert words[:-3] == re.findall(r"\w+|[^\w\s]", SYSTEM.lower())


def test_an_unknown_word_is_told_apart(tokenizer):
    words = ["is", "the", "zeppelin", "red", "?"]
    ids = tokenizer("is the zeppelin red?")["input_ids"]
    assert [token == tokenizer.unk_token_id for token in ids] == [word == "zeppelin" for word in words]


def test_ids_are_dense_and_a_multiple_of_eight(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(tokenizer) % 8 == 0


def test_saves_and_loads_as_a_fast_tokenizer(tokenizer, conversations, tmp_path):
    assert main(["--out", str(tmp_path / "tokenizer")]) == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for name in ("eos_token_id", "pad_token_id", "unk_token_id", "padding_side", "model_input_names"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert loaded.convert_tokens_to_ids(loaded.image_token) == tokenizer.convert_tokens_to_ids("<image>")
    texts = [render_text(turns, EOS) for turns in conversations[::20]]
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_the_vocabulary_is_always_the_same(tokenizer):
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
