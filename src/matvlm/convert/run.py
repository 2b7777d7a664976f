"""`matvlm convert`: which way a folder goes, by the model type in its `config.json`."""

from __future__ import annotations

from pathlib import Path

import torch

from matvlm.convert.checkpoint import SHARD_BYTES
from matvlm.convert.items import Report
from matvlm.convert.read import read_object
from matvlm.convert.release import CONFIG, MODEL_TYPE
from matvlm.convert.to_ours import to_ours
from matvlm.convert.to_release import to_release
from matvlm.errors import UserError
from matvlm.models.llava import CLASSES


def convert(
    source: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    like: Path | None = None,
    dtype: str | None = None,
    limit: int = SHARD_BYTES,
) -> Report:
    """Convert a release's folder to ours, or one of ours to the release's layout.

    Args:
        out: a folder that does not exist yet.
        tokenizer: as `to_ours` takes it. like: as `to_release` takes it.
        dtype: name of the weights' type in torch; by default as they are. limit: most bytes of a file.

    Raises:
        UserError: nothing is written, for the reason given.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; allowed: the folder of a checkpoint, with {CONFIG}")
    if out.exists():
        raise UserError(f"{out}: exists already; --out names a folder to be made")
    if source.resolve() in out.resolve().parents:
        raise UserError(f"{out}: lies within {source}; --out names a folder elsewhere")
    kind = read_object(source / CONFIG).get("model_type")
    wanted = None if dtype is None else getattr(torch, dtype)
    if kind == MODEL_TYPE:
        if like is not None:
            raise UserError(f"--like: is for the way to the release's layout, which {source} has already")
        return to_ours(source, out, tokenizer=tokenizer, dtype=wanted, limit=limit)
    if isinstance(kind, str) and kind in CLASSES:
        if tokenizer is not None:
            raise UserError(f"--tokenizer: is for checkpoints of the release, and {source} is one of ours")
        return to_release(source, out, like=like, dtype=wanted, limit=limit)
    raise UserError(
        f"{source / CONFIG}: model_type: is {kind!r}; allowed: {MODEL_TYPE} (TinyLLaVA Factory, MaTVLM) or "
        f"{', '.join(CLASSES)} (ours)"
    )
