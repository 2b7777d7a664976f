"""Conversation files that others wrote: every bad row is named, counted and reported; a bad file is one line."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from matvlm.data.conversations import load_conversations, turns_of, write_report
from matvlm.data.errors import DataError


def human(text="<image>\nwhat is it?"):
    return {"from": "human", "value": text}


def gpt(text="a cat"):
    return {"from": "gpt", "value": text}


def row(*messages, **fields):
    return {"id": "x", "image": "good.png", "conversations": list(messages) or [human(), gpt()], **fields}


GOOD = [row(id="a"), row(human("hello"), gpt("hi"), id="b")]
del GOOD[1]["image"]
CAT, ODD = "\U0001f63a", "\ud800"

# name: the bad row, its field, a part of the reason
BAD_ROWS = {
    "not an object": ("text", "row", "is not an object"),
    "null": (None, "row", "is not an object"),
    "no id": ({k: v for k, v in row().items() if k != "id"}, "id", "is missing"),
    "id of a wrong type": (row(id=["x"]), "id", "is not a string or an integer"),
    "id not UTF-8": (row(id=ODD), "id", "is not a string or an integer"),
    "image of a wrong type": (row(image=3), "image", "is not a string"),
    "no image after all": (row(image=None), "image", "is not a string"),
    "two images in a list": (row(image=["good.png", "good.png"]), "image", "is not a string"),
    "image not UTF-8": (row(image=f"{ODD}.png"), "image", "is not a string"),
    "image is empty": (row(image=""), "image", "is empty"),
    "image outside": (row(image="../good.png"), "image", "leads outside the image folder"),
    "image absolute": (row(image="/etc/passwd"), "image", "leads outside the image folder"),
    "no conversations": ({"id": "x", "image": "good.png"}, "conversations", "is not a list"),
    "conversations of a wrong type": (row(conversations="hello"), "conversations", "is not a list"),
    "no turn": (row(conversations=[]), "conversations", "has no answer"),
    "no answer": (row(human()), "conversations", "has no answer"),
    "unpaired turn": (row(human(), gpt(), human("and?")), "conversations", "ends with a question"),
    "answer first": (row(gpt(), human()), "conversations[0].from", "must be human"),
    "two answers": (row(human(), gpt(), gpt(), human("x")), "conversations[2].from", "must be human"),
    "two questions": (row(human(), human("x")), "conversations[1].from", "must be gpt"),
    "unknown role": (row(human(), {"from": "tool", "value": "x"}), "conversations[1].from", "must be gpt"),
    "message of a wrong type": (row(human(), "a cat"), "conversations[1]", "is not an object"),
    "no value": (row(human(), {"from": "gpt"}), "conversations[1].value", "is not a string"),
    "value not UTF-8": (row(human(), gpt(ODD)), "conversations[1].value", "valid Unicode"),
    "empty answer": (row(human(), gpt("  \n")), "conversations[1].value", "is an empty answer"),
    "image in an answer": (row(human("x"), gpt("<image>")), "conversations[1].value", "answer with <image>"),
    "two images": (row(human("<image>\n<image>\nwhat?"), gpt()), "conversations", "names <image> 2 times"),
    "two images in two turns": (
        row(human(), gpt(), human("<image>\nand?"), gpt()),
        "conversations",
        "names <image> 2 times; the row has 1 image",
    ),
    "image never shown": (row(human("what?"), gpt()), "conversations", "names <image> 0 times"),
    "image shown but none there": (
        {"id": "x", "conversations": [human(), gpt()]},
        "conversations",
        "names <image> 1 times; the row has 0 image",
    ),
}


@pytest.fixture
def folder(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "good.png")
    return tmp_path


def load(rows, folder, check_images=False):
    path = folder / "conversations.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return load_conversations(path, folder, check_images)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_reported_with_its_field(name, folder):
    bad, field, reason = BAD_ROWS[name]
    rows, rejected = load([GOOD[0], bad, GOOD[1]], folder)
    assert rows == GOOD
    assert len(rejected) == 1
    assert (rejected[0]["row"], rejected[0]["field"]) == (1, field)
    assert reason in rejected[0]["reason"]
    assert "\n" not in rejected[0]["reason"]


def test_all_bad_rows_are_counted(folder):
    rows, rejected = load([bad for bad, _, _ in BAD_ROWS.values()] + GOOD, folder)
    assert rows == GOOD
    assert [item["row"] for item in rejected] == list(range(len(BAD_ROWS)))
    write_report(folder / "rejected.json", rejected, total=len(rejected) + len(rows))
    report = json.loads((folder / "rejected.json").read_text(encoding="utf-8"))
    assert (report["total"], report["good"], report["rejected"]) == (len(BAD_ROWS) + 2, 2, len(BAD_ROWS))
    assert report["rows"] == rejected
    assert sum(report["reasons"].values()) == len(BAD_ROWS)
    assert report["reasons"]["row: is not an object"] == 2
    assert report["reasons"]["image: leads outside the image folder"] == 2


def test_bad_images_are_found_when_looked_at(folder):
    good = (folder / "good.png").read_bytes()
    (folder / "short.png").write_bytes(good[: len(good) // 2])
    (folder / "text.png").write_text("hello")
    os.symlink("/etc/hostname", folder / "link.png")
    names = ["good", "short", "gone", "text", "link", "short"]
    rows, rejected = load([row(id=i, image=f"{name}.png") for i, name in enumerate(names)], folder, True)
    assert [found["id"] for found in rows] == ["0"]
    reasons = {item["id"]: item["reason"] for item in rejected}
    assert sorted(reasons) == [1, 2, 3, 4, 5]
    assert all(item["field"] == "image" for item in rejected)
    for number, part in ((1, "cut short"), (2, "no such file"), (3, "not an image"), (4, "leads outside")):
        assert part in reasons[number]
        assert f"'{names[number]}.png'" in reasons[number]
    assert reasons[5] == reasons[1]


def test_images_are_not_opened_unless_asked(folder):
    rows, rejected = load([row(image="gone.png")], folder)
    assert len(rows) == 1
    assert rejected == []


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b'[{"id": "\xff"}]', "not UTF-8 (byte 9)"),
        (b"[{", "not JSON"),
        (b"", "not JSON"),
        (b"{}", "must hold a list of conversations, not dict"),
        (b"[]", "none of its 0 rows can be used"),
        (b'[{"id": 1}, 2]', "none of its 2 rows can be used; the first: conversations: is not a list"),
        (b"[" * 100_000, "not usable JSON"),
        (b'[{"id": ' + b"9" * 5000 + b"}]", "not usable JSON"),
    ],
)
def test_a_bad_file_is_one_line(data, part, tmp_path):
    path = tmp_path / "conversations.json"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_conversations(path, tmp_path, check_images=False)
    assert str(caught.value).startswith(f"{path}: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            load_conversations(path, tmp_path, check_images=False)


def test_rows_of_the_release_are_read(folder):
    """Integer ids, other keys, text alone, an image after its question, a byte order mark."""
    given_rows = [
        row(id=12, model="sft"),
        {"id": "text", "conversations": [human("hello"), gpt(f"hi {CAT}")]},
        row(human("what is it?\n<image>"), gpt(), human("sure?"), gpt("yes")),
    ]
    path = folder / "conversations.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(given_rows, ensure_ascii=False).encode())
    rows, rejected = load_conversations(path, folder, check_images=True)
    assert rejected == []
    assert [found["id"] for found in rows] == ["12", "text", "x"]
    assert turns_of(rows[1]) == [("hello", f"hi {CAT}")]
    assert turns_of(rows[2]) == [("what is it?\n<image>", "a cat"), ("sure?", "yes")]


leaves = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["human", "gpt", "<image>"])
)
messages = st.fixed_dictionaries({"from": leaves, "value": leaves}) | leaves
any_row = (
    st.fixed_dictionaries(
        {"id": leaves, "conversations": st.lists(messages, max_size=4) | leaves},
        optional={"image": leaves | st.lists(leaves, max_size=2)},
    )
    | leaves
)


@given(rows=st.lists(any_row, max_size=6))
@settings(max_examples=200, deadline=None)
def test_no_row_is_lost(rows, tmp_path_factory):
    """Whatever a file holds, each row is either handed back or rejected with a reason."""
    folder = tmp_path_factory.getbasetemp()
    found, rejected = load([*rows, GOOD[1]], folder)
    assert len(found) + len(rejected) == len(rows) + 1
    refused = {item["row"] for item in rejected}
    kept = [i for i in range(len(rows) + 1) if i not in refused]
    assert kept[-1] == len(rows)
    assert all(item["reason"] for item in rejected)
    for good in found:
        for question, answer in turns_of(good):
            assert isinstance(question, str)
            assert answer.strip()
