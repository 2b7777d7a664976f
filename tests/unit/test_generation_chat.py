"""Asking a model about an image: what it is shown, what comes back, and what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from matvlm.data.processor import count_image_tokens, load_processor
from matvlm.data.render import IGNORE, render_conversation, render_prompt
from matvlm.errors import UserError
from matvlm.files import write_json
from matvlm.generation.chat import Answer, Chat
from matvlm.generation.decoding import Decoding
from matvlm.generation.memory import MARGIN, weight_bytes
from matvlm.generation.prompt import encode_prompt
from matvlm.models.folder import hash_files, load_model

IMAGE = Image.linear_gradient("L").convert("RGB")
QUESTION = "what shape is in the image?"


@pytest.fixture(scope="module", params=["teacher", "init/attention-even-50"])
def chat(small, request):
    return Chat.open(small / request.param, device="cpu")


@pytest.fixture(scope="module")
def processor(small):
    return load_processor(small / "teacher")


def refusal(function, *args, **kwargs) -> str:
    """The one line of the UserError that ``function`` must raise."""
    with pytest.raises(UserError) as caught:
        list(function(*args, **kwargs) or ())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_first_prompt_is_the_one_that_models_are_evaluated_with(processor):
    whole = processor(text=[render_prompt(QUESTION)], images=[IMAGE])["input_ids"][0]
    assert encode_prompt(QUESTION, [], processor, 2048) == list(whole)
    assert encode_prompt(f"<image>\n {QUESTION} ", [], processor, 2048) == list(whole)


def test_a_later_prompt_is_the_one_that_models_are_trained_with(processor):
    """Up to where the answer begins."""
    turns = [(f"<image>\n{QUESTION}", "circle"), ("what color is it?", "a red one"), ("is it big?", "yes")]
    ids, labels = render_conversation(turns, processor.tokenizer, count_image_tokens(processor), 2048)
    asked = [(QUESTION, "circle"), turns[1]]
    last = next(i for i in range(len(ids), 0, -1) if labels[i - 1] == IGNORE)
    assert encode_prompt("is it big?", asked, processor, 2048) == ids[:last]


@pytest.mark.parametrize("decoding", [Decoding(24), Decoding(24, temperature=2.0, top_p=0.9, seed=3)])
def test_streamed_text_is_the_text(chat, decoding):
    answer = chat.ask(IMAGE, QUESTION, decoding)
    pieces = list(answer)
    assert len(pieces) > 5
    assert "".join(pieces) == answer.text
    whole = chat.processor.tokenizer.decode(answer.ids, skip_special_tokens=True)
    assert answer.text == whole.strip()


def test_the_tokens_are_those_of_generate(chat):
    inputs = chat.processor(text=[render_prompt(QUESTION)], images=[IMAGE], return_tensors="pt")
    output = load_model(chat.folder).generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = chat.ask(IMAGE, QUESTION, Decoding(12))
    assert answer.ids == []
    list(answer)
    assert answer.ids == output[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer.stopped == (answer.ids[-1] != chat.processor.tokenizer.eos_token_id)


def test_beams_come_as_one_piece(chat):
    inputs = chat.processor(text=[render_prompt(QUESTION)], images=[IMAGE], return_tensors="pt")
    output = chat.model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=3)
    answer = chat.ask(IMAGE, QUESTION, Decoding(8, num_beams=3))
    assert len(list(answer)) == 1
    assert answer.ids == output[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_seed_repeats_an_answer_and_leaves_other_random_numbers_alone(chat):
    def draw(seed):
        return "".join(chat.ask(IMAGE, QUESTION, Decoding(24, temperature=5.0, seed=seed)))

    torch.manual_seed(11)
    first, state = draw(1), torch.get_rng_state()
    torch.manual_seed(11)
    assert torch.equal(torch.get_rng_state(), state)
    assert draw(1) == first
    assert len({first, draw(2), draw(None), draw(None)}) == 4


def test_earlier_turns_are_seen(chat):
    again = [(QUESTION, "a big red circle in the image")]
    answers = {"".join(chat.ask(IMAGE, QUESTION, Decoding(24), earlier)) for earlier in ([], again, again * 2)}
    assert len(answers) > 1


def test_closing_an_answer_ends_its_generation(chat):
    answer = chat.ask(IMAGE, QUESTION, Decoding(2000))
    first = next(iter(answer))
    answer.close()
    assert answer.text == first
    assert 0 < len(answer.ids) < 1000
    assert list(answer) == []


def test_what_goes_wrong_while_generating_is_raised_where_the_text_is_read(chat, monkeypatch):
    def fail(**kwargs):
        raise error

    monkeypatch.setattr(chat.model, "generate", fail)
    error = RuntimeError("no such kernel")
    with pytest.raises(RuntimeError, match="no such kernel"):
        list(chat.ask(IMAGE, QUESTION))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried…\nmore")
    for decoding in (Decoding(), Decoding(num_beams=2)):
        assert "--device cpu: its memory ran out" in refusal(chat.ask, IMAGE, QUESTION, decoding)


def test_white_space_is_kept_inside_an_answer_only():
    answer = Answer(iter([" ", "\n a", " ", "", " b\n", "c ", "\n"]), [], 0)
    assert list(answer) == ["a", "  b", "\nc"]
    assert answer.text == "a  b\nc"


@pytest.mark.parametrize("question", ["", " \n", "<image>", "<image>\n<image> "])
def test_an_empty_question(chat, question):
    assert refusal(chat.ask, IMAGE, question) == "question: is empty"
    assert refusal(chat.check, [QUESTION, question]) == "question: is empty"


def test_a_question_that_is_no_text(chat):
    assert "is not UTF-8" in refusal(chat.ask, IMAGE, "what \udcff?")


def test_a_prompt_longer_than_the_model_allows(chat):
    """The longest that fits leaves one token for the answer."""
    room = chat.positions - 1 - len(encode_prompt("a", [], chat.processor, chat.positions))
    answer = chat.ask(IMAGE, "a" + " a" * room, Decoding(7))
    list(answer)
    assert len(answer.ids) == 1
    long = "a" + " a" * (room + 1)
    assert f"has {chat.positions} tokens, the image's 16 among them; this model allows {chat.positions - 1}" in (
        refusal(chat.ask, IMAGE, long)
    )
    assert "its prompt with all that was said before it has" in refusal(chat.check, ["a" * 3, long])


@pytest.mark.parametrize("name", ["", "none.png", "folder", "text.png", "cut.png", "\0"])
def test_an_image_that_cannot_be_used(chat, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("no image")
    IMAGE.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-99])
    path = tmp_path / name
    assert refusal(chat.ask, path, QUESTION).startswith(f"image {str(path)!r}: ")


def test_an_image_may_lie_anywhere_and_have_any_name(chat, tmp_path, monkeypatch):
    """Unlike those that a conversation file names."""
    monkeypatch.chdir(tmp_path)
    IMAGE.save(tmp_path / "~a.png")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "link.png").symlink_to(tmp_path / "~a.png")
    expected = "".join(chat.ask(IMAGE, QUESTION, Decoding(4)))
    for name in ("~a.png", "below/link.png", "below/../~a.png"):
        assert "".join(chat.ask(name, QUESTION, Decoding(4))) == expected


def altered(folder, out, config):
    """A sound folder with other entries in its configuration."""
    shutil.copytree(folder, out)
    (out / "config.json").write_text(json.dumps(json.loads((out / "config.json").read_text()) | config))
    write_json(out / "provenance.json", {"files": hash_files(out)})
    return out


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2"}, "model_type: is 'gpt2'; teachers and students are 'llava'"),
        ({"model_type": None}, "model_type: is None"),
        ({"text_config": {"model_type": "nonesuch"}}, "nonesuch"),
    ],
)
def test_a_model_of_another_family(small, tmp_path, config, words):
    folder = altered(small / "teacher", tmp_path / "other", config)
    assert words in refusal(Chat.open, folder, "cpu")
    assert words in refusal(load_model, folder)


def test_a_folder_that_is_no_whole_model(small, tmp_path):
    assert "config.json: missing" in refusal(Chat.open, tmp_path, "cpu")
    folder = shutil.copytree(small / "teacher", tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors: cut short or altered" in refusal(Chat.open, folder, "cpu")


@pytest.mark.parametrize("device", ["meta", "nonesuch", "cuda"])
def test_a_device_that_is_not_there(small, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(Chat.open, small / "teacher", device).startswith(f"--device {device}: ")


def test_a_dtype_that_is_not_offered(small):
    assert "allowed: auto, float32, bfloat16" in refusal(Chat.open, small / "teacher", "cpu", "int8")


def test_bfloat16_halves_the_weights(small):
    folder = small / "teacher"
    chat = Chat.open(folder, "cpu", "bfloat16")
    assert "".join(chat.ask(IMAGE, QUESTION, Decoding(4)))
    for dtype in (torch.float32, torch.bfloat16):
        assert weight_bytes(folder, dtype) == sum(p.numel() * dtype.itemsize for p in chat.model.parameters())


def test_a_gpu_with_too_little_memory(small, monkeypatch):
    """Said before anything is loaded; by default weights are halved there."""
    folder = small / "teacher"
    need = weight_bytes(folder, torch.bfloat16) + MARGIN
    free = [need]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 4 * need))
    assert Chat.open(folder, "auto").dtype == torch.bfloat16
    assert "--device cuda:1: no such GPU; there are 1" in refusal(Chat.open, folder, "cuda:1")
    free[0] -= 1
    line = refusal(Chat.open, folder, "cuda:0")
    assert line.startswith(f"--device cuda:0: {folder} needs 2.00 GiB of memory")
    assert "in bfloat16 and 2.00 GiB beside them); 2.00 GiB of the GPU's 8.00 GiB are free" in line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens 0: must be at least 1"),
        ({"num_beams": 0}, "--num-beams 0: must be at least 1"),
        ({"temperature": 0.0}, "--temperature 0: must be greater than 0; without it decoding is greedy"),
        ({"temperature": float("nan")}, "--temperature nan: must be greater than 0"),
        ({"temperature": float("inf")}, "--temperature inf"),
        ({"top_p": 0.0}, "--top-p 0: must be"),
        ({"top_p": 1.5}, "--top-p 1.5: must be greater than 0 and at most 1"),
        ({"seed": -1, "temperature": 1.0}, "--seed -1: must be from 0"),
        ({"seed": 2**63, "temperature": 1.0}, "must be from 0 to 2^63 - 1"),
        ({"seed": 1}, "--seed 1: nothing is drawn"),
        ({"num_beams": 2, "temperature": 1.0}, "--num-beams 2 with --temperature"),
        ({"num_beams": 2, "top_p": 0.5}, "--num-beams 2 with --top-p"),
    ],
)
def test_settings_that_contradict_each_other_or_make_no_sense(settings, words):
    assert words in refusal(Decoding, **settings)
