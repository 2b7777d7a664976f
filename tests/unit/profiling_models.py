"""Architectures and settings that profiling is tested with, and what stands for a measuring process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from transformers import LlavaForConditionalGeneration

from matvlm.config import Profile, RandomTeacher
from matvlm.profiling import point
from matvlm.profiling.point import Job
from matvlm.profiling.points import SAME, Point

IMAGE_TOKENS, LAYERS, WIDTH, HEADS, LONGEST = 16, 4, 32, 2, 256
SETTINGS = {"layouts": [], "prompt_tokens": [20], "generated_tokens": [16], "decode_steps": 4, "warmup_steps": 1}
VISION = {"image_size": 64, "patch_size": 16, "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2}
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "layers": LAYERS,
    "heads": HEADS,
    "kv_heads": HEADS,
    "max_position_embeddings": LONGEST,
}


def make_settings(**changed) -> Profile:
    return Profile.model_validate(SETTINGS | changed)


def architecture(**changed) -> RandomTeacher:
    """Of a Phi of a few thousand weights; ``changed`` is of its language model."""
    return RandomTeacher.model_validate(
        {"source": "random", "vision": VISION, "text": TEXT | changed, "vocab_size": 64}
    )


def make_job(layout: str | None = None, at: Point | None = None, **changed) -> Job:
    """A measurement on a CPU; ``changed`` is of the settings, if it is not of the job."""
    own = {name: changed.pop(name) for name in ("protocol", "runtime", "architecture") if name in changed}
    fields = {"protocol": SAME, "runtime": "", "architecture": architecture()} | own
    return Job(
        settings=make_settings(**changed),
        teacher=None,
        layout=layout,
        point=at or Point(20, 16, 1),
        device="cpu",
        first=True,
        **fields,
    )


def build(layout: str | None, dtype: str = "float32", **changed) -> LlavaForConditionalGeneration:
    """The teacher or a hybrid of it, with random weights; ``changed`` is of its language model."""
    job = make_job(layout, architecture=architecture(**changed), dtype=dtype)
    return point._build(job, point.pick_device("cpu"))


def killed(job: Job, out: Path) -> None:
    """A measuring process that takes too much memory for the system."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(job: Job, out: Path) -> None:
    """A measuring process with a mistake."""
    raise SystemExit(3)
