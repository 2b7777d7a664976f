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
from matvlm.profiling.documents import TEACHER, documents, turns
from matvlm.profiling.points import SAME, Point, points_of
from matvlm.profiling.state import Key, Measured, Row
from matvlm.progress import progress

if TYPE_CHECKING:
    from matvlm.profiling.point import Job

PRELOADED = ("matvlm.ops.mamba_path", "matvlm.ops.decode.linear")
"""Modules that take seconds to import; where they cannot be, they are passed over."""
PROCESSES = Lock()


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
    if len(names := {provenance.device_name(device) for device in devices}) > 1:
        raise UserError(f"--device {','.join(devices)}: {' and '.join(sorted(names))} do not compare")
    places = [
        (point, protocol)
        for point, protocol in product(points_of(settings), settings.protocols)
        if protocol == SAME or point.batch == min(settings.batch_sizes)
    ]
    origin = provenance.describe(
        _described(settings, architecture),
        teacher=teacher,
        device=devices[0],
    )
    found = Measured(state, origin)
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)

    def measure(repeat: int, point: Point, protocol: str) -> None:
        device = free.get()
        try:
            for key in turns(settings, found, Key(repeat, point, protocol, TEACHER, "")):
                if key in found:
                    continue
                start = time.perf_counter()
                layout = None if key.subject == TEACHER else key.subject
                first = repeat == 0
                row = _in_own_process(
                    settings, teacher, architecture, layout, protocol, key.runtime, point, device, first
                )
                found[key] = {**row, "seconds": round(time.perf_counter() - start, 3)}
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        # Repeats are rounds: none begins before the one before it has ended.
        for repeat in range(settings.repeats):
            running = [pool.submit(measure, repeat, *place) for place in places]
            try:
                for done in progress(running, f"profile, repeat {repeat + 1} of {settings.repeats}"):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return documents(settings, found)


def _described(settings: config.Profile, architecture: config.RandomTeacher | None) -> dict[str, object]:
    """What a run is configured with."""
    random = {} if architecture is None else {"architecture": architecture.model_dump(mode="json")}
    return {"profile": settings.model_dump(mode="json"), **random}


def _in_own_process(*arguments: object) -> Row:
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


def _held(state: Path | None, settings: config.Profile, architecture: config.RandomTeacher | None) -> Measured:
    """What a state file holds, if it is of these settings."""
    if state is None:
        raise UserError("--as-measured: needs --state, the file that holds what was measured")
    found = Measured.load(state)
    if found.of["config_hash"] != provenance.settings_hash(_described(settings, architecture)):
        raise UserError(f"{state}: was measured with other settings")
    return found


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
    parser.add_argument("--as-measured", action="store_true", help="measure no more, write what --state holds")
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.Profile, args.settings)
    architecture = config.parse_settings(config.RandomTeacher, args.architecture) if args.architecture else None
    if args.as_measured:
        made = documents(settings, _held(args.state, settings, architecture))
    else:
        made = profile(settings, args.teacher, architecture, args.device.split(","), args.state)
    with written_aside(args.out) as aside:
        for subject, document in made.items():
            write_json(aside / f"{subject}.json", document)
    if args.state is not None and not args.as_measured:
        args.state.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
