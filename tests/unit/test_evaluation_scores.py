"""The tasks' scores against values computed by hand, through lmms-eval, with answers that the test chooses."""

import json

import pytest
from PIL import Image

from matvlm.config import Evaluation
from matvlm.errors import UserError
from matvlm.evaluation.offline import offline
from matvlm.evaluation.results import identify, make_rows, sample_lines

YESNO = [  # answer, prediction
    ("yes", "yes"),
    ("yes", " YES\n"),
    ("yes", "Yes"),
    ("yes", "no"),
    ("yes", ""),
    ("no", "yes"),
    ("no", "yes"),
    ("no", "no"),
    ("no", "no."),
]
OPEN = [("red", "Red "), ("teal", ""), ("two", "three"), ("circle", "circle")]
TASKS = ("easy_vqa_yesno", "sort_of_clevr_relational")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What lmms-eval hands back for a model that says what the lists above say."""
    data = tmp_path_factory.mktemp("scores")
    Image.new("RGB", (8, 8)).save(data / "a.png")
    lines, said = [], {}
    for task, pairs in zip(TASKS, (YESNO, OPEN), strict=True):
        for number, (answer, prediction) in enumerate(pairs):
            question = f"{task} {number}"
            said[question] = prediction
            row = {"id": question, "image": "a.png", "question": question, "answer": answer, "task": task}
            lines.append(json.dumps(row) + "\n")
    (data / "questions.jsonl").write_text("".join(lines))

    with offline() as cache:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager

        from matvlm.evaluation.harness import TASK_FOLDER, load_tasks
        from matvlm.evaluation.model import MatVLM

        class Scripted(MatVLM):
            """Says what it is told to; all else is our model's own."""

            def _answer(self, questions, images, kwargs):
                assert [image.size for shown in images for image in shown] == [(8, 8)] * len(questions)
                return [said[question] for question in questions]

            def load(self, folder):
                from matvlm.data.processor import build_processor
                from matvlm.data.tokenizer import build_tokenizer

                self.processor = build_processor(build_tokenizer(), 8, 8)

        manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)
        tasks = load_tasks(manager, data, Evaluation(tasks=TASKS), cache)
        return simple_evaluate(
            model=Scripted(pretrained="scripted", batch_size=3, device="cpu"),
            tasks=tasks,
            task_manager=manager,
            bootstrap_iters=0,
            process_docs_parallel=1,
        )


def test_scores_are_those_computed_by_hand(results):
    rows = {(row["task"], row["metric"]): row for row in make_rows(results, TASKS, {"model": "teacher"})}
    expected = {
        ("easy_vqa_yesno", "accuracy"): 4 / 9,
        # Said yes five times, rightly three times.
        ("easy_vqa_yesno", "precision"): 3 / 5,
        # Of the answers that are yes or no; POPE counts no other as a miss.
        ("easy_vqa_yesno", "recall"): 3 / 4,
        ("easy_vqa_yesno", "f1"): 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4),
        # Of the right answers, as lmms-eval has it.
        ("easy_vqa_yesno", "yes_ratio"): 5 / 9,
        ("sort_of_clevr_relational", "accuracy"): 2 / 4,
        ("mean", "accuracy"): (4 / 9 + 2 / 4) / 2,
    }
    assert {key: row["value"] for key, row in rows.items()} == pytest.approx(expected)
    assert {key[0]: row["n"] for key, row in rows.items()} == {TASKS[0]: 9, TASKS[1]: 4, "mean": 13}


def test_samples_say_which_answers_are_correct(results):
    for task, pairs in zip(TASKS, (YESNO, OPEN), strict=True):
        kept = [json.loads(line) for line in sample_lines(results, task).splitlines()]
        assert [row["answer"] for row in kept] == [answer for answer, _ in pairs]
        right = [prediction.strip().lower() == answer for answer, prediction in pairs]
        assert [row["correct"] for row in kept] == right


def test_lmms_eval_finds_the_model_by_its_entry_point():
    with offline():
        from lmms_eval.models import get_model

        from matvlm.evaluation.model import MatVLM

        assert get_model("matvlm") is MatVLM


@pytest.mark.parametrize("text", ["", '{"text_config": {"model_ty', "[]", '{"text_config": 3}', "\xff"])
def test_a_configuration_cut_short_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json: cut short") as caught:
        identify(tmp_path, {"step": "train_teacher"})
    assert "\n" not in str(caught.value)
