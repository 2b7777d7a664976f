"""Sort-of-CLEVR, after Santoro et al. 2017, "A simple neural network module for relational reasoning".

Six objects, one of each colour, square or circle, on a white image of 75 x 75 pixels; ten questions about one
object and ten about how it relates to the others. A scene is a function of (seed, split, index) alone.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

SIZE = 75
RADIUS = 5
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "orange": (255, 156, 0),
    "gray": (128, 128, 128),
    "yellow": (255, 255, 0),
}
SHAPES = ("square", "circle")
NUMBERS = ("one", "two", "three", "four", "five", "six")
QUESTIONS_PER_KIND = 10
CAPTION_QUESTION = "describe the image."
NONRELATIONAL = (
    "what is the shape of the {} object?",
    "is the {} object on the left?",
    "is the {} object at the top?",
)
RELATIONAL = (
    "what is the shape of the object closest to the {} object?",
    "what is the shape of the object furthest from the {} object?",
    "how many objects have the shape of the {} object?",
)
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")


@dataclass(frozen=True)
class Thing:
    """An object: its colour, its shape, and its centre in pixels from the left (x) and the top (y)."""

    colour: str
    shape: str
    x: int
    y: int


@dataclass(frozen=True)
class Question:
    """A question about a scene with its one-word answer."""

    text: str
    answer: str
    relational: bool


def scene_rng(seed: int, split: int, index: int) -> np.random.Generator:
    """The random numbers of one scene, independent of all other scenes'."""
    return np.random.default_rng(np.random.SeedSequence([seed, split, index]))


def draw_scene(rng: np.random.Generator) -> list[Thing]:
    """Six objects in the order of `COLOURS`, a pixel or more apart; every object has exactly one closest and
    one furthest other object, and none lies on a middle line, so that each question has one answer."""
    while True:
        centres = _centres(rng)
        if not _has_ties(centres):
            break
    shapes = rng.integers(len(SHAPES), size=len(COLOURS))
    return [
        Thing(colour, SHAPES[shape], int(x), int(y))
        for colour, shape, (x, y) in zip(COLOURS, shapes, centres, strict=True)
    ]


def _centres(rng: np.random.Generator) -> np.ndarray:
    """(6, 2) centres of objects that do not touch."""
    chosen: list[np.ndarray] = []
    while True:
        for centre in rng.integers(RADIUS, SIZE - RADIUS, size=(32, 2)):
            apart = all(np.abs(centre - other).max() >= 2 * RADIUS + 2 for other in chosen)
            if apart and SIZE // 2 not in centre:
                chosen.append(centre)
                if len(chosen) == len(COLOURS):
                    return np.stack(chosen)


def _has_ties(centres: np.ndarray) -> bool:
    squared = ((centres[:, None] - centres[None]) ** 2).sum(-1)  # (6, 6)
    others = np.sort(squared, axis=1)[:, 1:]  # the 0 to itself comes first
    return bool((others[:, 0] == others[:, 1]).any() or (others[:, -1] == others[:, -2]).any())


def render_scene(things: list[Thing]) -> bytes:
    """The image as PNG, 75 x 75 RGB."""
    image = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    canvas = ImageDraw.Draw(image)
    for thing in things:
        box = (thing.x - RADIUS, thing.y - RADIUS, thing.x + RADIUS, thing.y + RADIUS)
        shape = canvas.rectangle if thing.shape == "square" else canvas.ellipse
        shape(box, fill=COLOURS[thing.colour])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def place(thing: Thing) -> str:
    """Cell of a 3 x 3 grid: `top left`, `top`, …, `center`, …, `bottom right`."""
    row, column = _ROWS[thing.y * 3 // SIZE], _COLUMNS[thing.x * 3 // SIZE]
    return f"{row} {column}".strip() or "center"


def caption(things: list[Thing]) -> str:
    """Every object with its colour, shape and place, in the order of `COLOURS`."""
    return (
        ", ".join(
            f"{_article(thing.colour)} {thing.colour} {thing.shape} at the {place(thing)}" for thing in things
        )
        + "."
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def draw_questions(things: list[Thing], rng: np.random.Generator) -> list[Question]:
    """Ten distinct questions about one object, then ten relational ones."""
    questions = []
    for relational, kinds in ((False, NONRELATIONAL), (True, RELATIONAL)):
        pairs = list(product(range(len(kinds)), range(len(things))))
        for pick in rng.permutation(len(pairs))[:QUESTIONS_PER_KIND]:
            kind, index = pairs[pick]
            text = kinds[kind].format(things[index].colour)
            questions.append(Question(text, _answer(things, index, relational, kind), relational))
    return questions


def _answer(things: list[Thing], index: int, relational: bool, kind: int) -> str:
    thing = things[index]
    if not relational:
        if kind == 0:
            return thing.shape
        position = thing.x if kind == 1 else thing.y
        return "yes" if position < SIZE / 2 else "no"
    if kind == 2:
        return NUMBERS[sum(other.shape == thing.shape for other in things) - 1]
    others = sorted(
        (other for other in things if other is not thing),
        key=lambda other: (other.x - thing.x) ** 2 + (other.y - thing.y) ** 2,
    )
    return others[0 if kind == 0 else -1].shape


def sentences() -> list[str]:
    """Text with every word that a question, an answer or a caption can have."""
    places = [place(Thing("red", "square", x, y)) for x, y in product((5, 36, 69), repeat=2)]
    questions = [kind.format(colour) for kind in NONRELATIONAL + RELATIONAL for colour in COLOURS]
    return [CAPTION_QUESTION, *questions, *places, *SHAPES, *NUMBERS, "yes", "no", "a an at the , ."]
