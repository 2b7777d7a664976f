"""`python -m matvlm.data.prepare`: write one split of the embedded data as a LLaVA conversation file."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np

from matvlm.config import TASKS, EmbeddedData, parse_settings
from matvlm.data import easy_vqa
from matvlm.data import sort_of_clevr as clevr
from matvlm.errors import one_line
from matvlm.files import written_aside
from matvlm.progress import progress
from matvlm.sections import Split

SPLITS = get_args(Split)
ASKED = ("val", "test")
"""Splits whose questions are also written one by one."""
_CHUNK = 250

# One prepared image: its conversation row, the task of each turn (None for a caption), its SHA-256.
Item = tuple[dict[str, Any], list[str | None], str]


def prepare(settings: EmbeddedData, split: str, out: Path, workers: int = 1) -> dict[str, Any]:
    """Write `conversations.json`, `images/`, `report.json` and, for val and test, `questions.jsonl` to ``out``.

    ``out`` appears whole or not at all, and its bytes depend on ``settings`` and ``split`` alone.

    Args:
        workers: processes that draw scenes.

    Returns:
        What `report.json` holds.
    """
    with written_aside(out) as aside:
        items = [*_easy_vqa(settings, split, aside), *_sort_of_clevr(settings, split, aside, workers)]
        # Mixed, so that the first n rows are a fair sample of both sources.
        order = np.random.default_rng(np.random.SeedSequence([settings.seed, 2, SPLITS.index(split)]))
        items = [items[i] for i in order.permutation(len(items))]
        conversations = _dump([row for row, _, _ in items]).encode()
        (aside / "conversations.json").write_bytes(conversations)
        if split in ASKED:
            rows = _questions(items, settings.seed, split)
            (aside / "questions.jsonl").write_text("".join(_dump(row) + "\n" for row in rows), encoding="utf-8")
        report = _report(items, split, conversations)
        (aside / "report.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return report


def _easy_vqa(settings: EmbeddedData, split: str, out: Path) -> Iterator[Item]:
    pictures = easy_vqa.pick(split, settings.seed, {name: s.easy_vqa for name, s in settings.splits.items()})
    folder = out / "images" / "easy_vqa"
    folder.mkdir(parents=True)
    with progress(pictures, f"easy-VQA {split}") as bar:
        for picture in bar:
            data = picture.path.read_bytes()
            (folder / f"{picture.name}.png").write_bytes(data)
            tasks = [f"easy_vqa_{'yesno' if answer in ('yes', 'no') else 'open'}" for _, answer in picture.turns]
            row = _row(picture.name, f"images/easy_vqa/{picture.name}.png", picture.turns)
            yield row, list(tasks), hashlib.sha256(data).hexdigest()


def _sort_of_clevr(settings: EmbeddedData, split: str, out: Path, workers: int) -> Iterator[Item]:
    count = settings.splits[split].sort_of_clevr
    (out / "images" / "sort_of_clevr").mkdir(parents=True)
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    draw = partial(_draw_scenes, settings.seed, split, out)
    with progress(title=f"Sort-of-CLEVR {split}", total=count) as bar:
        if workers <= 1 or len(chunks) < 2:
            results = map(draw, chunks)
            for items in results:
                bar.update(len(items))
                yield from items
            return
        # Forked workers need no import of their own; this process has no threads that a fork could cut off.
        with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("fork")) as pool:
            for items in pool.map(draw, chunks):
                bar.update(len(items))
                yield from items


def _draw_scenes(seed: int, split: str, out: Path, indices: range) -> list[Item]:
    """Draw scenes, write their images, and hand back the rest."""
    items: list[Item] = []
    for index in indices:
        rng = clevr.scene_rng(seed, SPLITS.index(split), index)
        things = clevr.draw_scene(rng)
        questions = clevr.draw_questions(things, rng)
        data = clevr.render_scene(things)
        name = f"sort_of_clevr_{split}_{index:06d}"
        path = f"images/sort_of_clevr/{name}.png"
        (out / path).write_bytes(data)
        turns = [(clevr.CAPTION_QUESTION, clevr.caption(things)), *((q.text, q.answer) for q in questions)]
        kinds = [f"sort_of_clevr_{'relational' if q.relational else 'nonrelational'}" for q in questions]
        items.append((_row(name, path, turns), [None, *kinds], hashlib.sha256(data).hexdigest()))
    return items


def _row(name: str, image: str, turns: Any) -> dict[str, Any]:
    """A row of the LLaVA format."""
    conversations = []
    for i, (question, answer) in enumerate(turns):
        conversations.append({"from": "human", "value": f"<image>\n{question}" if i == 0 else question})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": name, "image": image, "conversations": conversations}


def _questions(items: list[Item], seed: int, split: str) -> Iterator[dict[str, str]]:
    """All questions, task after task, each task in an order drawn once: the first n are a fair sample."""
    by_task: dict[str, list[dict[str, str]]] = {task: [] for task in TASKS}
    for row, tasks, _ in sorted(items, key=lambda item: item[0]["id"]):
        for turn, task in enumerate(tasks):
            if task is not None:
                human, gpt = row["conversations"][2 * turn : 2 * turn + 2]
                by_task[task].append(
                    {
                        "id": f"{row['id']}_{turn:02d}",
                        "image": row["image"],
                        "question": human["value"].removeprefix("<image>\n"),
                        "answer": gpt["value"],
                        "task": task,
                    }
                )
    for number, rows in enumerate(by_task.values()):
        rng = np.random.default_rng(np.random.SeedSequence([seed, 3, SPLITS.index(split), number]))
        yield from (rows[i] for i in rng.permutation(len(rows)))


def _report(items: list[Item], split: str, conversations: bytes) -> dict[str, Any]:
    manifest = "".join(
        f"{row['image']} {digest}\n" for row, _, digest in sorted(items, key=lambda i: i[0]["image"])
    )
    sources = Counter(row["image"].split("/")[1] for row, _, _ in items)
    return {
        "split": split,
        "images": {name: sources[name] for name in ("easy_vqa", "sort_of_clevr")},
        "questions": dict(Counter(task or "caption" for _, tasks, _ in items for task in tasks)),
        "sha256": {
            "conversations.json": hashlib.sha256(conversations).hexdigest(),
            # Of the lines `path sha256`, sorted by path, of all images.
            "images": hashlib.sha256(manifest.encode()).hexdigest(),
        },
    }


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


@one_line
def main(argv: list[str] | None = None) -> None:
    """Write one split of the embedded data as a LLaVA conversation file with its images."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.EmbeddedData")
    parser.add_argument("--split", required=True, choices=SPLITS)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    args = parser.parse_args(argv)
    prepare(parse_settings(EmbeddedData, args.settings), args.split, args.out, args.workers)


if __name__ == "__main__":
    raise SystemExit(main())
