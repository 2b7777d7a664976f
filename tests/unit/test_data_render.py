"""Conversations as tokens: the release's template to the letter, and labels on the answers alone."""

from __future__ import annotations

import numpy as np
import pytest
from conversation_text import render_text
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from matvlm.data.errors import DataError
from matvlm.data.processor import build_processor, count_image_tokens, load_processor
from matvlm.data.render import render_conversation, render_prompt
from matvlm.data.segments import SegmentTable
from matvlm.data.sort_of_clevr import SHAPES, sentences
from matvlm.data.tokenizer import build_tokenizer

# PAPER.md, "prompt (template `phi`)", word by word.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
EOS = "<|endoftext|>"
TURNS = [
    ("<image>\ndescribe the image.", "a red square at the top left, an orange circle at the center."),
    ("is the red object on the left?", "yes"),
    ("how many objects have the shape of the gray object?", "two"),
]


def byte_level_tokenizer():
    """A byte-level BPE tokenizer as Phi-2's is, trained on some text of the template's kind."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator([f"{SYSTEM} USER: \n{text} ASSISTANT: {text}" for text in sentences()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token=EOS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


@pytest.fixture(scope="module", params=["words", "byte-level"])
def tokenizer(request):
    return build_tokenizer() if request.param == "words" else byte_level_tokenizer()


WORDS = build_tokenizer()

answers = st.sampled_from([*SHAPES, "yes", "no", "four", TURNS[0][1]])
questions = st.sampled_from([text for text in sentences() if text.endswith("?")])


def make_row(turns, **image):
    messages = []
    for question, answer in turns:
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "seven", "conversations": messages, **image}


@st.composite
def conversations(draw):
    """One to six turns; the first question shows the image, before or after its text."""
    turns = draw(st.lists(st.tuples(questions, answers), min_size=1, max_size=6))
    first, answer = turns[0]
    shown = draw(st.sampled_from([f"<image>\n{first}", f"{first}\n<image>", f"<image>{first}", "<image>"]))
    return [(shown, answer), *turns[1:]]


def test_one_turn_is_the_template():
    text = render_text([("<image>\nwhat is it?", "a cat")], EOS)
    assert text == f"{SYSTEM} USER: <image>\nwhat is it? ASSISTANT: a cat<|endoftext|>"


def test_further_turns_follow_the_end_of_text():
    first, second = "<image>\nwhat is it?", "is it big?"
    text = render_text([(first, "a cat"), (second, "no")], EOS)
    begin = f"{SYSTEM} USER: <image>\nwhat is it? ASSISTANT: a cat<|endoftext|>"
    assert text == f"{begin}USER: is it big? ASSISTANT: no<|endoftext|>"


def test_text_alone_and_an_image_in_a_later_turn():
    text = render_text([("hello", "hi"), ("<image>\nwhat is it?", "a cat")], EOS)
    begin = f"{SYSTEM} USER: hello ASSISTANT: hi<|endoftext|>"
    assert text == f"{begin}USER: <image>\nwhat is it? ASSISTANT: a cat<|endoftext|>"


@pytest.mark.parametrize("question", ["what is it?", "<image>\nwhat is it?", "what is it?\n<image>"])
@pytest.mark.parametrize("count", [0, 1, 16])
def test_prompt_ends_where_the_answer_begins(question, count):
    shown = "<image>" * count + "\n" if count else ""
    assert render_prompt(question, count) == f"{SYSTEM} USER: {shown}what is it? ASSISTANT:"


@pytest.mark.parametrize("turns", [TURNS, TURNS[:1], [("hello", "hi")], [("hello", "hi"), *TURNS]])
def test_ids_are_those_of_the_whole_text(tokenizer, turns):
    ids, _ = render_conversation(turns, tokenizer, n_image_tokens=5, max_length=10_000)
    text = render_text(turns, EOS, n_image_tokens=5)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_labels_are_the_answers(tokenizer):
    ids, labels = render_conversation(TURNS, tokenizer, n_image_tokens=5, max_length=10_000)
    assert len(ids) == len(labels)
    assert all(label in (token, -100) for token, label in zip(ids, labels, strict=True))
    learnt = tokenizer.decode([label for label in labels if label != -100])
    spoken = [part.strip() for part in learnt.split(EOS)]
    assert spoken == [*(answer for _, answer in TURNS), ""]


def test_each_answer_follows_its_prompt(tokenizer):
    """What stands before a run of labels is the text up to `ASSISTANT:`, and nothing of the answer."""
    ids, labels = render_conversation(TURNS, tokenizer, n_image_tokens=5, max_length=10_000)
    starts = [i for i in range(len(ids)) if labels[i] != -100 and labels[i - 1] == -100]
    assert len(starts) == len(TURNS)
    for turn, start in enumerate(starts):
        before = render_text(TURNS[:turn], EOS, 5) if turn else f"{SYSTEM} "
        shown = TURNS[turn][0].replace("<image>", "<image>" * 5)
        expected = f"{before}USER: {shown} ASSISTANT:"
        assert ids[:start] == tokenizer(expected, add_special_tokens=False)["input_ids"]


@given(turns=conversations(), image_tokens=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_any_conversation_labels_its_answers(turns, image_tokens):
    ids, labels = render_conversation(turns, WORDS, image_tokens, max_length=10_000)
    assert ids == WORDS(render_text(turns, EOS, image_tokens))["input_ids"]
    assert WORDS.unk_token_id not in ids
    learnt = WORDS.decode([label for label in labels if label != -100])
    assert [part.strip() for part in learnt.split(EOS)] == [*(answer for _, answer in turns), ""]


@given(rows=st.lists(conversations(), min_size=1, max_size=5), max_length=st.integers(45, 200))
@settings(max_examples=60, deadline=None)
def test_segments_are_the_plain_rendering(rows, max_length):
    """A batch from the table equals each row rendered on its own, cut short or not, and padded."""
    table = SegmentTable([make_row(turns, image="x.png") for turns in rows], WORDS, 4)
    order = [*range(len(rows)), 0]
    found = table.assemble(np.array(order), max_length, WORDS.pad_token_id)
    for place, row in enumerate(order):
        whole, _ = render_conversation(rows[row], WORDS, 4, 10_000)
        try:
            ids, labels = render_conversation(rows[row], WORDS, 4, max_length)
        except DataError:  # the data set refuses such rows before they come here
            ids, labels = whole[:max_length], [-100] * min(max_length, len(whole))
        size = found.lengths[place]
        assert found.input_ids[place, :size].tolist() == ids
        assert found.labels[place, :size].tolist() == labels
        assert (found.input_ids[place, size:] == WORDS.pad_token_id).all()
        assert (found.labels[place, size:] == -100).all()
    assert found.input_ids.shape[1] == found.lengths.max()


def test_segments_need_the_image_with_the_first_question():
    text_alone, later = [("hello", "hi")], [("hello", "hi"), ("<image>\nwhat?", "a cat")]
    for bad in (make_row(text_alone), make_row(later, image="x.png")):
        with pytest.raises(DataError, match="row seven: image"):
            SegmentTable([bad], WORDS, 4)


@pytest.mark.parametrize("room", [1, 30])
def test_a_conversation_without_room_for_an_answer(room):
    with pytest.raises(DataError, match=f"no answer begins within {room} tokens"):
        render_conversation(TURNS, WORDS, 5, room)


def test_a_tokenizer_without_image_or_end(tokenizer):
    model = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    with pytest.raises(DataError, match="has no token <image>"):
        render_conversation(TURNS, PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"), 5, 99)
    model = Tokenizer(models.WordLevel({"<unk>": 0, "<image>": 1}, unk_token="<unk>"))
    with pytest.raises(DataError, match="end-of-text"):
        render_conversation(TURNS, PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"), 5, 99)


@pytest.mark.parametrize(("strategy", "count"), [("full", 16), ("default", 15)])
def test_processor_expands_the_prompt_alike(strategy, count, tmp_path):
    """LlavaProcessor on `render_prompt` gives the ids that training saw before the answer."""
    built = build_processor(WORDS, image_size=64, patch_size=16, select_strategy=strategy)
    built.save_pretrained(tmp_path)
    for processor in (built, load_processor(tmp_path)):
        assert count_image_tokens(processor) == count
        image = Image.new("RGB", (75, 60), (200, 10, 10))
        made = processor(images=image, text=render_prompt(TURNS[0][0]), return_tensors="pt")
        ids, labels = render_conversation(TURNS, WORDS, count, 10_000)
        start = next(i for i, label in enumerate(labels) if label != -100)
        assert made["input_ids"][0].tolist() == ids[:start]
        assert tuple(made["pixel_values"].shape) == (1, 3, 64, 64)


def test_a_folder_without_a_processor(tmp_path):
    with pytest.raises(DataError, match="no processor of a LLaVA model") as caught:
        load_processor(tmp_path)
    assert "\n" not in str(caught.value)
