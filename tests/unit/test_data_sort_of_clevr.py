"""Sort-of-CLEVR: every answer and caption against what the pixels of the image say."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from matvlm.data.sort_of_clevr import (
    caption,
    draw_questions,
    draw_scene,
    render_scene,
    scene_rng,
    sentences,
)

RGB = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "orange": (255, 156, 0),
    "gray": (128, 128, 128),
    "yellow": (255, 255, 0),
}
SCENES = 300


def make_scene(index, seed=0, split=0):
    rng = scene_rng(seed, split, index)
    things = draw_scene(rng)
    return things, draw_questions(things, rng)


def see(png):
    """By colour (shape, x, y) from the pixels of an image alone; x and y are the middle of the object's box."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (75, 75)
        assert image.mode == "RGB"
        pixels = np.asarray(image)
    seen, painted = {}, 0
    for colour, value in RGB.items():
        rows, columns = np.nonzero((pixels == value).all(-1))
        left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
        assert (right - left, bottom - top) == (10, 10), "an object is covered, or its colour is there twice"
        corner = (pixels[top, left] == value).all()
        seen[colour] = ("square" if corner else "circle", (left + right) / 2, (top + bottom) / 2)
        assert len(rows) == 121 if corner else 70 < len(rows) < 110
        painted += len(rows)
    assert painted + (pixels == 255).all(-1).sum() == 75 * 75, "there is more than six objects and white"
    return seen


def oracle(question, seen):
    """The answer that the objects seen give."""
    colour = next(word for word in re.findall(r"\w+", question) if word in RGB)
    shape, x, y = seen[colour]
    distance = {c: math.dist((x, y), place) for c, (_, *place) in seen.items() if c != colour}
    match question.replace(colour, "COLOUR"):
        case "what is the shape of the COLOUR object?":
            return shape
        case "is the COLOUR object on the left?":
            return "yes" if x < 37 else "no"
        case "is the COLOUR object at the top?":
            return "yes" if y < 37 else "no"
        case "what is the shape of the object closest to the COLOUR object?":
            return seen[min(distance, key=distance.get)][0]
        case "what is the shape of the object furthest from the COLOUR object?":
            return seen[max(distance, key=distance.get)][0]
        case "how many objects have the shape of the COLOUR object?":
            same = [other for other, *_ in seen.values() if other == shape]
            return ["one", "two", "three", "four", "five", "six"][len(same) - 1]
    raise AssertionError(question)


def test_answers_are_what_the_image_shows():
    for index in range(SCENES):
        things, questions = make_scene(index)
        seen = see(render_scene(things))
        for question in questions:
            assert question.answer == oracle(question.text, seen), (index, question)


def test_ten_questions_of_each_kind():
    kinds = set()
    for index in range(SCENES):
        _, questions = make_scene(index)
        assert len({question.text for question in questions}) == 20
        assert [question.relational for question in questions] == [False] * 10 + [True] * 10
        for question in questions:
            relational = any(word in question.text for word in ("closest", "furthest", "how many"))
            assert relational == question.relational
            kinds.add(question.text)
    assert len(kinds) == 36  # six kinds of question about six colours


def test_captions_are_what_the_image_shows():
    for index in range(SCENES):
        things, _ = make_scene(index, seed=1)
        parts = []
        for colour, (shape, x, y) in see(render_scene(things)).items():
            row = "top" if y < 25 else "bottom" if y >= 50 else ""
            column = "left" if x < 25 else "right" if x >= 50 else ""
            place = " ".join(word for word in (row, column) if word) or "center"
            parts.append(f"{'an' if colour == 'orange' else 'a'} {colour} {shape} at the {place}")
        assert caption(things) == ", ".join(parts) + "."


def test_each_question_has_one_answer():
    """No two others are equally close or far, none lies on a middle line, none touches another."""
    for index in range(SCENES):
        things, _ = make_scene(index, seed=2)
        for thing in things:
            assert 37 not in (thing.x, thing.y)
            others = [other for other in things if other is not thing]
            squared = sorted((other.x - thing.x) ** 2 + (other.y - thing.y) ** 2 for other in others)
            assert squared[0] < squared[1]
            assert squared[-2] < squared[-1]
            assert all(max(abs(other.x - thing.x), abs(other.y - thing.y)) > 11 for other in others)


@pytest.mark.parametrize("other", [(0, 0, 8), (0, 1, 7), (1, 0, 7)])
def test_a_scene_depends_on_seed_split_and_index(other):
    seed, split, index = other
    assert make_scene(7) == make_scene(7)
    assert make_scene(7)[0] != make_scene(index, seed, split)[0]


def test_answers_are_balanced():
    """No answer can be guessed: both shapes and both sides come about as often."""
    answers = [(q.text, q.answer) for i in range(SCENES) for q in make_scene(i, seed=3)[1]]
    for start, value in (("is the", "yes"), ("what is the shape of the object", "square")):
        share = np.mean([answer == value for text, answer in answers if text.startswith(start)])
        assert 0.42 < share < 0.58


def test_sentences_hold_every_word():
    known = {word for sentence in sentences() for word in re.findall(r"\w+", sentence)}
    for index in range(50):
        things, questions = make_scene(index, seed=4)
        text = [caption(things), *(q.text for q in questions), *(q.answer for q in questions)]
        assert set(re.findall(r"\w+", " ".join(text))) <= known
