"""From our model folders to the release's layout, for those who have its code."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlavaConfig

from matvlm import provenance
from matvlm.convert import names
from matvlm.convert.checkpoint import SHARD_BYTES, Checkpoint, Item, write_shards
from matvlm.convert.items import Report, make_items
from matvlm.convert.match import check_tensors, find_head, head_shapes, our_shapes, release_shapes
from matvlm.convert.release import CONFIG, MAMBA_CONFIG
from matvlm.convert.release_config import read_like, read_ours, write_config, write_mamba_config
from matvlm.convert.texts import FILES, VOCABULARIES
from matvlm.errors import UserError
from matvlm.files import write_json, written_aside
from matvlm.models.folder import PROVENANCE, check_folder, hash_files


def to_release(
    source: Path,
    out: Path,
    *,
    like: Path | None = None,
    dtype: torch.dtype | None = None,
    limit: int = SHARD_BYTES,
) -> Report:
    """Convert a teacher or student of ours to a checkpoint that the release's code loads.

    Args:
        like: a checkpoint of the release of the same architecture, such as the one that the teacher was converted
            from. Its configuration, its tokenizer and SigLIP's pooling head are taken over, and the row goes that
            was added to its vocabulary.
        dtype: of the weights written; by default as they are. limit: most bytes of a file.

    Raises:
        UserError: the source is not whole or of another family, or ``like`` is another model; nothing is written.
    """
    check_folder(source)
    config = read_ours(source)
    checkpoint = Checkpoint(source)
    ours = our_shapes(config, source / CONFIG)
    check_tensors(checkpoint, ours, set())
    dtype = checkpoint.dtype(ours, dtype)
    rows = config.text_config.vocab_size
    other, base, head = None, {}, None
    if like is not None:
        other, base = read_like(like, config)
        config.text_config.vocab_size = other.text_config.vocab_size
        head = _pooling_head(like, config)
    texts = like or source
    if not any((texts / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{texts}: no tokenizer ({', '.join(VOCABULARIES)})")

    wanted, report = release_shapes(config, source / CONFIG), Report()
    items = make_items(checkpoint, {name: names.in_release(name) for name in ours}, wanted, dtype)
    if config.text_config.vocab_size < rows:
        report.left_out.append(f"row {rows - 1} of embed_tokens and lm_head, which was added for <image>")
    if names.HEAD_BIAS in wanted and names.HEAD_BIAS not in ours:
        shape = wanted[names.HEAD_BIAS]
        items.append(Item(names.HEAD_BIAS, shape, dtype, lambda: torch.zeros(shape, dtype=dtype)))
        report.added.append(
            f"{names.HEAD_BIAS}: zeros, since the release's Phi has a bias there and ours had none"
        )
    if head is not None:
        parts = {name: name for name in names.POOLING_HEAD}
        items += make_items(head, parts, head_shapes(config.vision_config), dtype)
        report.added.append(f"the pooling head of {like.name}, which no pass reads")
    described = {"name": source.resolve().name, "hash": provenance.model_hash(source)}
    record = report.record("to_release", described, dtype)
    with written_aside(out) as aside:
        report.count(items, write_shards(aside, items, limit))
        write_json(aside / CONFIG, write_config(config, base, dtype))
        if (mamba := write_mamba_config(config, other, like)) is not None:
            write_json(aside / MAMBA_CONFIG, mamba)
        for name in FILES:
            if (texts / name).is_file():
                shutil.copy(texts / name, aside / name)
        write_json(aside / PROVENANCE, {**record, "files": hash_files(aside)})
    return report


def _pooling_head(like: Path, config: LlavaConfig) -> Checkpoint | None:
    """The tensors of ``like``, if it has a pooling head.

    Raises:
        UserError: a part of it is missing or misshapen.
    """
    checkpoint = Checkpoint(like)
    return checkpoint if find_head(checkpoint, config.vision_config) else None
