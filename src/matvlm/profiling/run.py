"""`python -m matvlm.profiling.run`: latency, throughput and memory of one model, as JSON.

Every point (prompt length, generated length, batch) runs in a process of its own, one after the other, so that
none inherits the memory of another; the repeats of a point share its process and give a row each. What the
columns hold is said in `matvlm.profiling.measure` and `matvlm.profiling.memory`. Nothing else should run on
the device meanwhile.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from matvlm import config, provenance
from matvlm.errors import UserError, one_line
from matvlm.files import write_json
from matvlm.profiling.points import Point, points_of
from matvlm.training.device import pick_device

FIGURES = (
    "prefill_s",
    "decode_tokens_per_s",
    "peak_memory_bytes",
    "reserved_memory_bytes",
    "device_memory_bytes",
    "weight_bytes",
    "cache_bytes",
)
"""Measured columns; all are empty where a point ran out of memory."""


def profile(settings: config.Profile, teacher: Path, layout: str | None, device: str) -> dict[str, object]:
    """Measure the teacher, or a hybrid of it where there is a ``layout``; see docs/architecture.md.

    Args:
        device: torch device, or `auto`.

    Returns:
        `step`, `rows`, `provenance` and `cost`. A point that ran out of memory is one row with empty figures.

    Raises:
        UserError: the teacher, the layout, the device or a point cannot be used.
    """
    device = str(pick_device(device))
    cost = provenance.Cost(device)
    rows = []
    for point in tqdm(points_of(settings), desc=f"profile {layout or 'teacher'}", disable=None):
        fixed = {
            "model": "student" if layout else "teacher",
            "layout": layout or "",
            "protocol": "same_runtime",
            "runtime": "transformers",
            "batch": point.batch,
            "prompt_tokens": point.prompt_tokens,
            "generated_tokens": point.generated_tokens,
        }
        measured = _in_own_process(settings, teacher, layout, point, device)
        rows += [{**fixed, **row} for row in measured or [{"repeat": 0, **dict.fromkeys(FIGURES)}]]
    # The points' memory, not that of this process, which holds no model.
    column = "peak_memory_bytes" if device.startswith("cuda") else "device_memory_bytes"
    peak = max((row[column] or 0 for row in rows), default=0)
    return {
        "step": "profile",
        "rows": rows,
        "provenance": provenance.describe(settings.model_dump(mode="json"), teacher=teacher, device=device),
        "cost": {**cost.finish(), "peak_memory_bytes": peak},
    }


def _in_own_process(
    settings: config.Profile, teacher: Path, layout: str | None, point: Point, device: str
) -> list[dict[str, object]] | None:
    """What `matvlm.profiling.point` measures; None if it ran out of memory."""
    with tempfile.TemporaryDirectory(prefix="matvlm-profile-") as folder:
        out = Path(folder) / "point.json"
        command = [sys.executable, "-m", "matvlm.profiling.point", "--settings", settings.model_dump_json()]
        command += ["--teacher", str(teacher), "--device", device, "--out", str(out), "--batch", str(point.batch)]
        command += ["--prompt-tokens", str(point.prompt_tokens)]
        command += ["--generated-tokens", str(point.generated_tokens)]
        command += ["--layout", layout] if layout else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(out.read_text(encoding="utf-8"))
    if done.returncode == -signal.SIGKILL:  # how the system ends a process that takes too much memory
        print(f"{point}: killed from outside; taken for out of memory", file=sys.stderr)
        return None
    lines = done.stderr.splitlines() or [""]
    if lines[-1].startswith("error: "):
        raise UserError(lines[-1].removeprefix("error: "))
    raise RuntimeError(f"{point} failed with status {done.returncode}:\n{done.stderr}")


@one_line
def main(argv: list[str] | None = None) -> None:
    """Measure speed and memory of one model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True, help="JSON of matvlm.config.Profile")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--layout", help="measure a hybrid of the teacher instead of the teacher")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.Profile, args.settings)
    write_json(args.out, profile(settings, args.teacher, args.layout, args.device))


if __name__ == "__main__":
    raise SystemExit(main())
