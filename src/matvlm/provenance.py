"""Where a number comes from: commit, hashes, versions and device, and what the run cost.

`describe` holds what is the same whenever a run is repeated on the same machine; `Cost` what varies.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "mamba-ssm", "causal-conv1d", "lmms-eval")
COLUMNS = (
    "commit",
    "dirty",
    "config_hash",
    "data_hash",
    "teacher_hash",
    *(name.replace("-", "_") for name in PACKAGES),
    "device",
    "kernel_path",
)
COST_COLUMNS = ("wall_s", "gpu_s", "peak_memory_bytes")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def settings_hash(settings: object) -> str:
    """First 16 hexadecimal digits of the SHA-256 of settings as sorted JSON."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def data_hash(folder: Path) -> str:
    """Hash of a prepared split, from its own `report.json`; empty where there is none."""
    report = folder / "report.json"
    return file_hash(report)[:16] if report.is_file() else ""


def model_hash(folder: Path) -> str:
    """Hash over the names and bytes of what makes a model what it is: its safetensors files, `config.json` and
    `tokenizer.json`."""
    return files_hash([*folder.glob("*.safetensors"), folder / "config.json", folder / "tokenizer.json"])


def files_hash(paths: Iterable[Path]) -> str:
    """Hash over the names and bytes of those of some files that there are."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"{path.name} {file_hash(path)}\n".encode())
    return digest.hexdigest()[:16]


def git_state(root: Path = Path(".")) -> tuple[str, bool | None]:
    """Commit and whether files other than results differ from it.

    Where only files travelled, without the repository, the environment variable ``MATVLM_COMMIT`` names the
    commit that they were taken from, with ``-dirty`` behind it if they were changed; without it too the answer is
    `("", None)`.
    """
    if commit := os.environ.get("MATVLM_COMMIT"):
        return commit.removesuffix("-dirty"), commit.endswith("-dirty")
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return "", None
    return commit, bool(changes)


def describe(
    settings: object,
    *,
    data: Path | None = None,
    teacher: Path | None = None,
    device: str = "cpu",
    kernel_path: str | None = None,
) -> dict[str, object]:
    """Provenance of a run, with the keys of `COLUMNS`.

    Args:
        settings: what the step was configured with; anything JSON can hold.
        data: folder of the prepared split that the number was measured on.
        teacher: folder of the teacher.
        device: torch device the run used, as `cpu` or `cuda:0`.
        kernel_path: `torch` or `mamba_ssm`; none for what Mamba-2 layers on ``device`` run on.
    """
    commit, dirty = git_state()
    row: dict[str, object] = {
        "commit": commit,
        "dirty": dirty,
        "config_hash": settings_hash(settings),
        "data_hash": data_hash(data) if data else "",
        "teacher_hash": model_hash(teacher) if teacher else "",
    }
    for name in PACKAGES:
        row[name.replace("-", "_")] = _version(name)
    row |= {"device": device_name(device), "kernel_path": kernel_path or _kernel_path(device)}
    return row


def device_name(device: str) -> str:
    """Name of the GPU, or the processor's architecture, model and number of cores."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()}{_processor()}, {os.cpu_count()} cores"


class Cost:
    """Wall time, GPU seconds and peak memory of a run, measured from construction to `finish`.

    Attributes:
        before_s: seconds that a run which is resumed had trained before.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.before_s = 0.0
        self._start = time.perf_counter()

    def finish(self, processes: int = 1) -> dict[str, float | int]:
        """Costs so far, with the keys of `COST_COLUMNS`; memory is the device allocator's peak on a GPU, the
        process's peak resident set on a CPU. Of ``processes`` with a GPU each, all take this time, and memory
        is this one's."""
        wall = self.before_s + time.perf_counter() - self._start
        if self.device.startswith("cuda"):
            import torch

            peak = torch.cuda.max_memory_allocated(self.device)
            return {"wall_s": round(wall, 3), "gpu_s": round(wall * processes, 3), "peak_memory_bytes": peak}
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"wall_s": round(wall, 3), "gpu_s": 0.0, "peak_memory_bytes": peak}


def _kernel_path(device: str) -> str:
    """What Mamba-2 layers on a device run on."""
    if not device.startswith("cuda"):
        return "torch"
    from matvlm.ops.choose import kernel_path

    return kernel_path(device)


def _processor() -> str:
    """Its model's name, as Linux tells it; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return f" {found[1].strip()}" if found else ""


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
