"""`python -m matvlm.profiling.run`: latency, throughput and memory of the teacher and hybrids of it, as JSON.

Every measurement (model, prompt length, generated length, batch, repeat) runs in a process of its own, one after
the other. The models take turns and repeats are rounds through all of them, so that what the machine does
meanwhile spreads over all instead of passing for a difference between two. What the columns hold is said in
`matvlm.profiling.measure` and `matvlm.profiling.memory`. Nothing else should run on the device.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from matvlm import config, provenance
from matvlm.errors import UserError, one_line
from matvlm.files import write_json, written_aside
from matvlm.profiling.points import Point, points_of
from matvlm.progress import progress

if TYPE_CHECKING:
    from matvlm.profiling.point import Job

TIMES = ("prefill_s", "decode_tokens_per_s")
MEMORY = ("peak_memory_bytes", "reserved_memory_bytes", "device_memory_bytes", "weight_bytes", "cache_bytes")
"""Measured columns, which are empty where a point ran out of memory. Memory is the same in every repeat, so the
first one's stands in the others."""
TEACHER = "teacher"
Row = dict[str, object]


def profile(settings: config.Profile, teacher: Path, device: str) -> dict[str, dict[str, object]]:
    """Measure the teacher and a hybrid of it for each layout of ``settings``.

    Args:
        device: torch device, or `auto`.

    Returns:
        By `teacher` or layout: `step`, `rows`, `provenance` and `cost`.

    Raises:
        UserError: the teacher, a layout, the device or a point cannot be used.
    """
    from matvlm.profiling.point import Job
    from matvlm.training.device import pick_device

    device = str(pick_device(device))
    subjects = (TEACHER, *settings.layouts)
    rounds = list(product(range(settings.repeats), points_of(settings), subjects))
    found: dict[tuple[int, Point, str], Row | None] = {}
    seconds = dict.fromkeys(subjects, 0.0)
    for repeat, point, subject in progress(rounds, "profile"):
        if repeat and found[0, point, subject] is None:  # it will not fit the second time either
            continue
        layout = None if subject == TEACHER else subject
        start = time.perf_counter()
        job = Job(settings, teacher, layout, point, device, memory=repeat == 0)
        found[repeat, point, subject] = _in_own_process(job)
        seconds[subject] += time.perf_counter() - start
    origin = provenance.describe(settings.model_dump(mode="json"), teacher=teacher, device=device)
    documents = {}
    for subject in subjects:
        rows = [
            _row(found, repeat, point, name)
            for repeat, point, name in rounds
            if name == subject and (repeat, point, name) in found
        ]
        documents[subject] = {
            "step": "profile",
            "rows": rows,
            "provenance": origin,
            "cost": _cost(seconds[subject], rows, device),
        }
    return documents


def _row(found: dict[tuple[int, Point, str], Row | None], repeat: int, point: Point, subject: str) -> Row:
    first, measured = found[0, point, subject] or {}, found[repeat, point, subject] or {}
    return {
        "model": TEACHER if subject == TEACHER else "student",
        "layout": "" if subject == TEACHER else subject,
        "protocol": "same_runtime",
        "runtime": "transformers",
        "batch": point.batch,
        "prompt_tokens": point.prompt_tokens,
        "generated_tokens": point.generated_tokens,
        "repeat": repeat,
        **{name: measured.get(name) for name in TIMES},
        **{name: first.get(name) for name in MEMORY},
    }


def _cost(seconds: float, rows: list[Row], device: str) -> dict[str, float | int]:
    """Of the measuring processes, not of this one, which holds no model."""
    on_gpu = device.startswith("cuda")
    column = "peak_memory_bytes" if on_gpu else "device_memory_bytes"
    peak = max((row[column] or 0 for row in rows), default=0)
    wall = round(seconds, 3)
    return {"wall_s": wall, "gpu_s": wall if on_gpu else 0.0, "peak_memory_bytes": peak}


def _in_own_process(job: Job) -> Row | None:
    """What `matvlm.profiling.point.measure` finds; None if it ran out of memory."""
    from matvlm.profiling import point

    # A server that has imported the libraries and done nothing else is forked: a fresh process in a tenth of the
    # time that the imports take.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([point.__name__])
    with tempfile.TemporaryDirectory(prefix="matvlm-profile-") as folder:
        out = Path(folder) / "point.json"
        process = context.Process(target=point.run, args=(job, out))
        process.start()
        process.join()
        if process.exitcode == 0:
            written = json.loads(out.read_text(encoding="utf-8"))
            if "error" in written:
                raise UserError(written["error"])
            return written["row"]
    if process.exitcode == -signal.SIGKILL:  # how the system ends a process that takes too much memory
        print(f"{job.point}: killed from outside; taken for out of memory", file=sys.stderr)
        return None
    raise RuntimeError(f"{job.point} of {job.layout or TEACHER} failed with status {process.exitcode}")


@one_line
def main(argv: list[str] | None = None) -> None:
    """Measure speed and memory of the teacher and its hybrids, and write a file for each to a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.Profile")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True, help="folder for teacher.json and {layout}.json")
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.Profile, args.settings)
    documents = profile(settings, args.teacher, args.device)
    with written_aside(args.out) as aside:
        for subject, document in documents.items():
            write_json(aside / f"{subject}.json", document)


if __name__ == "__main__":
    raise SystemExit(main())
