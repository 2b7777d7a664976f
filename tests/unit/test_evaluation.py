"""The evaluation through lmms-eval against a plain loop, one question at a time; what is kept; bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from matvlm.config import TASKS, load_config
from matvlm.data.images import open_image
from matvlm.data.prepare import prepare
from matvlm.data.processor import build_processor, load_processor
from matvlm.data.render import render_prompt
from matvlm.data.tokenizer import build_tokenizer
from matvlm.evaluation.run import main
from matvlm.models.folder import load_model, save_model
from matvlm.models.initialise import build_student
from matvlm.teacher.build import build_teacher

ROOT = Path(__file__).parents[2]
CELL = {"init": "attention", "layout": "even-50", "loss": "prob+ce", "divergence": "kl", "seed": 3}
SETTINGS = {"batch_size": 7, "max_new_tokens": 3, "limit": 10_000}


def guessing(model, tokenizer, seed):
    """Large random weights, and a head that knows a few words only, so that answers differ between questions."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.zeros(len(tokenizer), 1)
    known[tokenizer.convert_tokens_to_ids(["yes", "no", "circle", "red", "two", "three", tokenizer.eos_token])] = 1
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
        model.lm_head.weight.mul_(known)  # all other words have logit 0
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`data/`, `teacher/` and `student/`, all as small as can be."""
    root = tmp_path_factory.mktemp("evaluation")
    preset = load_config(yaml.safe_load((ROOT / "params.yaml").read_text())).presets["debug"]
    prepare(preset.data, "test", root / "data")
    tokenizer = build_tokenizer()
    ids = {"image": "<image>", "eos": tokenizer.eos_token, "pad": tokenizer.pad_token}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()}
    teacher = build_teacher(preset.teacher, vocab_size=len(tokenizer), token_ids=ids, seed=0).eval()
    teacher = guessing(teacher, tokenizer, 2)
    vision = preset.teacher.vision
    processor = build_processor(tokenizer, vision.image_size, vision.patch_size)
    save_model(teacher, root / "teacher", {"provenance": {"config_hash": "abc"}}, processor=processor)
    student = guessing(build_student(teacher, "even-50", "attention", 0), tokenizer, 2)
    record = {"cell": CELL, "provenance": {"config_hash": "def", "teacher_hash": "of the teacher"}}
    save_model(student, root / "student", record, like=root / "teacher")
    accept_some_answers(root)
    return root


def accept_some_answers(root):
    """Let a third of the questions, none of yes and no, have the teacher's answer for the right one, another
    third the student's: untrained models would get none right."""
    judges = [(load_model(root / name), load_processor(root / name)) for name in ("teacher", "student")]
    rows = questions(root)
    for number, row in enumerate(rows):
        if number % 3 < 2 and row["task"] != "easy_vqa_yesno":
            image = open_image(row["image"], root / "data")
            row["answer"] = answer_alone(*judges[number % 3], row["question"], image) or row["answer"]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "data" / "questions.jsonl").write_text(text)


@pytest.fixture(scope="module")
def finished(folder):
    """The command on both models in one process, with an empty home folder."""
    home = folder / "home"
    home.mkdir()
    names = ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    command = [sys.executable, "-m", "matvlm.evaluation.run", "--settings", json.dumps(SETTINGS)]
    command += ["--data", folder / "data", "--models", folder / "teacher", folder / "student"]
    command += ["--outs", folder / "out" / "teacher", folder / "out" / "student", "--device", "cpu"]
    return subprocess.run(command, env=environment | {"HOME": str(home)}, capture_output=True, text=True)


def run(folder, out, model="student", **settings):
    """The command on one model in this process."""
    arguments = ["--settings", json.dumps(SETTINGS | settings), "--data", str(folder / "data"), "--device", "cpu"]
    return main([*arguments, "--model", str(folder / model), "--out", str(out)])


def read(path):
    return json.loads((path / "results.json").read_text())


def samples(path, task):
    return [json.loads(line) for line in (path / "samples" / f"{task}.jsonl").read_text().splitlines()]


def questions(folder):
    return [json.loads(line) for line in (folder / "data" / "questions.jsonl").read_text().splitlines()]


@torch.no_grad()
def answer_alone(model, processor, question, image):
    """Greedy decoding of one question without batch, padding or cache."""
    inputs = processor(text=render_prompt(question), images=image, return_tensors="pt")
    ids, new = inputs["input_ids"], []
    for _ in range(SETTINGS["max_new_tokens"]):
        logits = model(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=False).logits
        new.append(int(logits[0, -1].argmax()))
        if new[-1] == processor.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([[new[-1]]])], dim=1)
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_scores_and_samples_are_those_of_one_question_at_a_time(folder, finished, name):
    assert finished.returncode == 0, finished.stderr
    out = folder / "out" / name
    model, processor = load_model(folder / name), load_processor(folder / name)
    scores = {(row["task"], row["metric"]): (row["value"], row["n"]) for row in read(out)["rows"]}
    accuracies, seen = [], set()
    for task in TASKS:
        asked = [row for row in questions(folder) if row["task"] == task]
        kept = samples(out, task)
        assert [row["id"] for row in kept] == [row["id"] for row in asked]
        right = 0
        for row, sample in zip(asked, kept, strict=True):
            image = open_image(row["image"], folder / "data")
            prediction = answer_alone(model, processor, row["question"], image)
            right += prediction == row["answer"]
            expected = {key: row[key] for key in ("id", "question", "answer")}
            assert sample == expected | {"prediction": prediction, "correct": prediction == row["answer"]}
            seen.add(prediction)
        assert scores[task, "accuracy"] == (pytest.approx(right / len(asked)), len(asked))
        accuracies.append(right / len(asked))
    assert scores["mean", "accuracy"] == (pytest.approx(sum(accuracies) / 4), len(questions(folder)))
    # The comparison must be worth something: answers differ, some are right and some wrong.
    assert len(seen) > 5
    assert 0 < sum(accuracies) < 4


def test_rows_and_provenance_say_which_model_it_was(folder, finished):
    assert finished.returncode == 0, finished.stderr
    teacher, student = read(folder / "out" / "teacher"), read(folder / "out" / "student")
    for row in teacher["rows"]:
        assert row["model"] == "teacher"
        assert [row[key] for key in CELL] == [None] * 5
    for row in student["rows"]:
        assert {key: row[key] for key in CELL} == CELL
        assert row["model"] == "student"
    metrics = [row["metric"] for row in student["rows"] if row["task"] == "easy_vqa_yesno"]
    assert metrics == ["accuracy", "f1", "precision", "recall", "yes_ratio"]
    assert student["step"] == "evaluate"
    assert set(student["cost"]) == {"wall_s", "gpu_s", "peak_memory_bytes"}
    assert student["provenance"]["teacher_hash"] == "of the teacher"
    assert teacher["provenance"]["teacher_hash"] == teacher["provenance"]["model_hash"] != ""
    assert student["provenance"]["config_hash"] != teacher["provenance"]["config_hash"]
    assert student["provenance"]["data_hash"] == teacher["provenance"]["data_hash"] != ""


def test_the_command_shows_progress_alone_and_leaves_nothing_at_home(folder, finished):
    assert finished.returncode == 0, finished.stderr
    said = finished.stderr.splitlines()
    assert [line for line in said if "model 1 of 2" in line]
    assert [line for line in said if "model 2 of 2" in line]
    for noise in ("INFO", "Postprocessing", "Building contexts", "Generating"):
        assert noise not in finished.stderr
    assert list((folder / "home").iterdir()) == []


def test_a_second_run_gives_the_same_bytes(folder, finished, tmp_path):
    assert finished.returncode == 0, finished.stderr
    # Another process, no teacher before it, and no limit instead of one beyond the end.
    assert run(folder, tmp_path / "again", limit=None) == 0
    first = folder / "out" / "student"
    assert json.dumps(read(first)["rows"]) == json.dumps(read(tmp_path / "again")["rows"])
    for task in TASKS:
        name = f"samples/{task}.jsonl"
        assert (first / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_limit_takes_the_first_questions_and_replaces_an_older_result(folder, finished, tmp_path):
    assert finished.returncode == 0, finished.stderr
    (tmp_path / "out" / "samples").mkdir(parents=True)
    (tmp_path / "out" / "samples" / "old.jsonl").touch()
    task = "sort_of_clevr_relational"
    assert run(folder, tmp_path / "out", limit=3, tasks=[task]) == 0
    assert samples(tmp_path / "out", task) == samples(folder / "out" / "student", task)[:3]
    assert [path.name for path in (tmp_path / "out" / "samples").iterdir()] == [f"{task}.jsonl"]
    rows = read(tmp_path / "out")["rows"]
    assert [(row["task"], row["n"]) for row in rows] == [(task, 3), ("mean", 3)]


def drop_weights(root):
    (root / "student" / "model.safetensors").unlink()


def alter_weights(root):
    path = root / "student" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forget_weights(root):
    drop_weights(root)
    path = root / "student" / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}}))


def forget_cell(root):
    path = root / "student" / "provenance.json"
    record = json.loads(path.read_text())
    del record["cell"]
    path.write_text(json.dumps(record))


def drop_questions(root):
    (root / "data" / "questions.jsonl").unlink()


def add_line(line):
    def damage(root):
        with open(root / "data" / "questions.jsonl", "ab") as stream:
            stream.write(line + b"\n")

    return damage


def point_outside(root):
    path = root / "data" / "questions.jsonl"
    rows = questions(root)
    rows[0]["image"] = "../teacher/config.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def cut_images(root):
    for path in (root / "data" / "images").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:100])


MAYBE = {"id": "a", "image": "a.png", "question": "?", "answer": "maybe", "task": "easy_vqa_yesno"}


@pytest.mark.parametrize(
    ("damage", "settings", "message"),
    [
        (drop_weights, {}, "model.safetensors: missing"),
        (forget_weights, {}, "student/provenance.json: files: must map the names"),
        (alter_weights, {}, "model.safetensors: cut short or altered"),
        (forget_cell, {}, "provenance.json: 'cell' is missing"),
        (drop_questions, {}, "questions.jsonl: missing"),
        (add_line(b"{"), {}, "questions.jsonl: line"),
        (add_line(b'{"id": "\xff"}'), {}, "questions.jsonl: line"),
        (add_line(b'{"id": "a"}'), {}, "image: Field required"),
        (add_line(json.dumps(MAYBE).encode()), {}, "allows yes and no, not 'maybe'"),
        (add_line(json.dumps(MAYBE | {"task": "easy_vqa_open", "answer": " "}).encode()), {}, "answer: "),
        (cut_images, {}, "damaged or cut short"),
        (point_outside, {}, "leads outside"),
        (None, {"tasks": ["mmlu"]}, "unknown task 'mmlu'; allowed: easy_vqa_yesno"),
        (None, {"tasks": []}, "tasks: is empty"),
        (None, {"tasks": ["easy_vqa_open"] * 2}, "tasks: names easy_vqa_open twice"),
        (None, {"limit": 0}, "limit"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, capsys, damage, settings, message):
    for name in ("student", "data", "teacher"):
        shutil.copytree(folder / name, tmp_path / name)
    if damage is not None:
        damage(tmp_path)
    assert run(tmp_path, tmp_path / "out" / "student", **settings) == 2
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert "Traceback" not in said
    assert last.startswith("error: ")
    assert message in last
    assert not any((tmp_path / "out").glob("*"))


def test_models_and_outputs_must_pair_up(folder, tmp_path, capsys):
    common = ["--settings", "{}", "--data", str(folder / "data"), "--models", "a", "b"]
    assert main([*common, "--outs", str(tmp_path / "x")]) == 2
    assert "--models names 2 folders and --outs 1" in capsys.readouterr().err
    assert main([*common, "--outs", str(tmp_path / "x"), str(tmp_path / "y" / ".." / "x")]) == 2
    assert "names a folder twice" in capsys.readouterr().err


def test_a_task_without_questions_is_named(folder, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    rows = [row for row in questions(folder) if row["task"] != "easy_vqa_open"]
    (tmp_path / "data" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path, tmp_path / "out") == 2
    assert "no questions of easy_vqa_open" in capsys.readouterr().err
