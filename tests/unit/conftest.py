"""A small teacher and small splits, made once for all tests that distil."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from matvlm.config import Preset, load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def debug() -> Preset:
    """The preset `debug` of params.yaml."""
    return load_config(yaml.safe_load((ROOT / "params.yaml").read_text()) | {"preset": "debug"}).active


@pytest.fixture(scope="session")
def small(debug, tmp_path_factory) -> Path:
    """A folder with `data/distill`, `data/val`, an untrained `teacher`, and `init/{attention,random}`."""
    from matvlm.data.prepare import prepare
    from matvlm.data.processor import build_processor
    from matvlm.data.tokenizer import build_tokenizer
    from matvlm.models import initialise
    from matvlm.models.folder import save_model
    from matvlm.teacher.build import build_teacher

    root = tmp_path_factory.mktemp("small")
    for split in ("distill", "val"):
        prepare(debug.data, split, root / "data" / split)
    settings = debug.teacher
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer, settings.vision.image_size, settings.vision.patch_size)
    ids = {"image": processor.image_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    teacher = build_teacher(settings, vocab_size=len(tokenizer), token_ids=ids, seed=0)
    teacher.lm_head.weight.data *= 50  # an untrained teacher finds all words alike; this one has opinions
    save_model(teacher, root / "teacher", {"step": "train_teacher"}, processor=processor)
    for init, layout in (("attention", "even-50"), ("random", "even-50"), ("attention", "end-50")):
        arguments = f"--teacher {root}/teacher --init {init} --layout {layout} --seed 0"
        assert initialise.main([*arguments.split(), "--out", str(root / "init" / f"{init}-{layout}")]) == 0
    return root


@pytest.fixture(scope="session")
def cache(small, debug) -> Path:
    """The teacher's full cache of `data/distill`."""
    from matvlm.distill.cache import run as step

    arguments = f"--max-length 448 --teacher {small}/teacher --data {small}/data/distill"
    arguments += f" --state {small}/state --out {small}/cache"
    settings = json.dumps(debug.cache.model_dump(mode="json"))
    assert step.main(["--settings", settings, *arguments.split(), "--device", "cpu"]) == 0
    return small / "cache"
