"""`python -m matvlm.profiling.run`: latency, throughput and memory of the teacher and hybrids of it, as JSON.

Every measurement (protocol, model, runtime, lengths, batch, repeat) runs in a process of its own. The models take
turns and repeats are rounds through all of them, so that what the machine does meanwhile spreads over all instead
of passing for a difference between two. Several GPUs share the points: all models are measured at one on the same
GPU, one after the other. What the columns hold is said in docs/profiling.md. Nothing else should run there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING

from matvlm import config, provenance
from matvlm.errors import UserError, one_line
from matvlm.files import write_json, written_aside
from matvlm.profiling.points import SAME, Point, points_of, runtimes_of
from matvlm.profiling.state import Key, Measured, Row
from matvlm.progress import progress

if TYPE_CHECKING:
    from matvlm.profiling.point import Job

TIMES = (
    "prefill_s",
    "context_prefill_s",
    "decode_tokens_per_s",
    "first_decode_tokens_per_s",
    "copy_bandwidth_bytes_per_s",
    "bandwidth_limit_tokens_per_s",
)
ONCE = (
    "generated_decode_tokens_per_s",
    "energy_j_per_token",
    "peak_memory_bytes",
    "reserved_memory_bytes",
    "device_memory_bytes",
    "predicted_memory_bytes",
    "weight_bytes",
    "cache_bytes",
    "beyond_positions",
    "note",
)
"""Columns that are the same in every repeat, or too dear for more: the first one's stand in the others."""
PRELOADED = ("matvlm.ops.mamba_path", "matvlm.ops.decode.linear")
"""Modules that take seconds to import; where they cannot be, they are passed over."""
PROCESSES = Lock()
TEACHER = "teacher"


def profile(
    settings: config.Profile,
    teacher: Path | None,
    architecture: config.RandomTeacher | None,
    devices: list[str],
    state: Path | None = None,
) -> dict[str, dict[str, object]]:
    """Measure the teacher and a hybrid of it for each layout of ``settings``.

    Args:
        teacher: its folder, or none where its ``architecture`` is to have random weights.
        devices: torch devices, or `auto`.
        state: file to keep what is measured in, and to go on from.

    Returns:
        By `teacher` or layout: `step`, `rows`, `provenance` and `cost`.

    Raises:
        UserError: the teacher, a layout, a device or a point cannot be used.
    """
    from matvlm.profiling import point as _imported_here  # noqa: F401  and not by several threads at once
    from matvlm.training.device import pick_device

    devices = [str(pick_device(device)) for device in devices]
    subjects = (TEACHER, *settings.layouts)
    rounds = [
        (repeat, point, protocol)
        for repeat, point, protocol in product(range(settings.repeats), points_of(settings), settings.protocols)
        if protocol == SAME or point.batch == min(settings.batch_sizes)
    ]
    origin = provenance.describe(
        {"profile": settings.model_dump(mode="json"), **_described(architecture)},
        teacher=teacher,
        device=devices[0],
        kernel_path=_kernel_path(devices[0]),
    )
    found = Measured(state, origin)
    seconds = dict.fromkeys(subjects, 0.0)
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)

    def measure(repeat: int, point: Point, protocol: str) -> None:
        device = free.get()
        try:
            for subject in subjects:
                for runtime in runtimes_of(settings, protocol, subject == TEACHER):
                    key = Key(repeat, point, protocol, subject, runtime)
                    first = found.get(key.first)
                    if key in found or (first is not None and "decode_tokens_per_s" not in first):
                        continue  # what did not run the first time will not the second time either
                    start = time.perf_counter()
                    layout = None if subject == TEACHER else subject
                    job = (settings, teacher, architecture, layout, protocol, runtime, point, device, repeat == 0)
                    found[key] = _in_own_process(job)
                    seconds[subject] += time.perf_counter() - start
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        # Repeats are rounds: none begins before the one before it has ended.
        for repeat in range(settings.repeats):
            mine = [job for job in rounds if job[0] == repeat]
            running = [pool.submit(measure, *job) for job in mine]
            try:
                for done in progress(running, f"profile, repeat {repeat + 1} of {settings.repeats}"):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    documents = {}
    for subject in subjects:
        keys = sorted((key for key in found if key.subject == subject), key=lambda key: key.repeat)
        rows = [_row(found[key.first], found[key], key) for key in keys]
        documents[subject] = {
            "step": "profile",
            "rows": rows,
            "provenance": origin,
            "cost": _cost(seconds[subject], rows, devices[0]),
        }
    return documents


def _described(architecture: config.RandomTeacher | None) -> dict[str, object]:
    return {} if architecture is None else {"architecture": architecture.model_dump(mode="json")}


def _kernel_path(device: str) -> str:
    from matvlm.ops.choose import kernel_path

    return kernel_path(device)


def _row(first: Row, measured: Row, key: Key) -> Row:
    point, subject = key.point, key.subject
    return {
        "model": TEACHER if subject == TEACHER else "student",
        "layout": "" if subject == TEACHER else subject,
        "protocol": key.protocol,
        "runtime": measured["runtime"],
        "batch": point.batch,
        "prompt_tokens": point.prompt_tokens,
        "generated_tokens": point.generated_tokens,
        "repeat": key.repeat,
        **{name: measured.get(name) for name in TIMES},
        **{name: first.get(name) for name in ONCE},
    }


def _cost(seconds: float, rows: list[Row], device: str) -> dict[str, float | int]:
    """Of the measuring processes, not of this one, which holds no model."""
    on_gpu = device.startswith("cuda")
    column = "peak_memory_bytes" if on_gpu else "device_memory_bytes"
    peak = max((row[column] or 0 for row in rows), default=0)
    wall = round(seconds, 3)
    return {"wall_s": wall, "gpu_s": wall if on_gpu else 0.0, "peak_memory_bytes": peak}


def _in_own_process(arguments: tuple) -> Row:
    """What `matvlm.profiling.point.measure` finds of a `Job` with these fields."""
    from matvlm.profiling import point

    job: Job = point.Job(*arguments)
    # A server that has imported the libraries and done nothing else is forked: a fresh process in a tenth of the
    # time that the imports take.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([point.__name__, *PRELOADED])
    with tempfile.TemporaryDirectory(prefix="matvlm-profile-") as folder:
        out = Path(folder) / "point.json"
        process = context.Process(target=point.run, args=(job, out))
        # Starting one looks after others that have ended, and of two threads that look at one, one is told wrong.
        with PROCESSES:
            process.start()
        wait([process.sentinel])
        with PROCESSES:
            process.join()
        if process.exitcode == 0:
            written = json.loads(out.read_text(encoding="utf-8"))
            if "error" in written:
                raise UserError(written["error"])
            return written["row"]
    if process.exitcode == -signal.SIGKILL:  # how the system ends a process that takes too much memory
        print(f"{job.point}: killed from outside; taken for out of memory", file=sys.stderr)
        return {"runtime": job.runtime}
    raise RuntimeError(f"{job.point} of {job.layout or TEACHER} failed with status {process.exitcode}")


@one_line
def main(argv: list[str] | None = None) -> None:
    """Measure speed and memory of the teacher and its hybrids, and write a file for each to a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.Profile")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--teacher", type=Path, help="folder of the teacher")
    model.add_argument("--architecture", help="JSON of matvlm.config.RandomTeacher, for random weights")
    parser.add_argument("--device", default="auto", help="torch device, or several with commas between")
    parser.add_argument("--out", type=Path, required=True, help="folder for teacher.json and {layout}.json")
    parser.add_argument("--state", type=Path, help="file to keep what is measured in, and to go on from")
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.Profile, args.settings)
    architecture = config.parse_settings(config.RandomTeacher, args.architecture) if args.architecture else None
    documents = profile(settings, args.teacher, architecture, args.device.split(","), args.state)
    with written_aside(args.out) as aside:
        for subject, document in documents.items():
            write_json(aside / f"{subject}.json", document)
    if args.state is not None:
        args.state.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
