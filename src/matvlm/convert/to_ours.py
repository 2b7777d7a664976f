"""From the release's layout to our model folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaConfig

from matvlm import provenance
from matvlm.convert import names
from matvlm.convert.checkpoint import SHARD_BYTES, Checkpoint, write_shards
from matvlm.convert.items import Report, make_items
from matvlm.convert.match import check_layout, check_tensors, find_head, our_shapes, release_shapes
from matvlm.convert.release import CONFIG, read_release
from matvlm.convert.texts import load_tokenizer, make_processor
from matvlm.errors import UserError
from matvlm.files import write_json, written_aside
from matvlm.models.folder import PROVENANCE, hash_files
from matvlm.models.llava import CLASSES


def to_ours(
    source: Path,
    out: Path,
    *,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    limit: int = SHARD_BYTES,
) -> Report:
    """Convert a TinyLLaVA Factory checkpoint to a teacher, a MaTVLM checkpoint to a student.

    Args:
        tokenizer: folder of the language model's tokenizer; by default the source's own.
        dtype: of the weights written; by default as they are. limit: most bytes of a file.

    Raises:
        UserError: the source is not exactly what its configuration says, or cannot be a model of ours; nothing is
            written.
    """
    config, raw = read_release(source)
    checkpoint = Checkpoint(source)
    check_layout(config, checkpoint)
    wanted = release_shapes(config, source / CONFIG)
    left_out, optional = _without_counterpart(checkpoint, config)
    check_tensors(checkpoint, wanted, {*left_out, *optional})
    found = checkpoint.dtype([*wanted, *optional], dtype)
    _check_buffers(checkpoint, left_out, config)
    if optional and not torch.equal(checkpoint.load(names.HEAD_WEIGHT), checkpoint.load(names.EMBEDDING)):
        raise UserError(f"{source}: tie_word_embeddings is true, but lm_head and embed_tokens differ")

    rows = config.text_config.vocab_size
    processor = make_processor(load_tokenizer(tokenizer or source, raw), config)
    config.dtype = found
    config.architectures = [CLASSES[config.model_type].__name__]
    shapes = our_shapes(config, source / CONFIG)
    items = make_items(checkpoint, {names.in_release(name): name for name in shapes}, shapes, config.dtype)
    report = Report(left_out=left_out)
    if config.text_config.vocab_size > rows:
        report.added.append(f"row {rows} of embed_tokens and lm_head, for <image>: the mean of all rows")
    if (shaped := raw.get("image_aspect_ratio", "square")) != "square":
        report.notes.append(f"image_aspect_ratio is {shaped!r}; our processor resizes images to a square")
    described = {"name": source.resolve().name, "hash": provenance.model_hash(source), CONFIG: raw}
    record = report.record("to_ours", described, config.dtype)
    with written_aside(out) as aside:
        report.count(items, write_shards(aside, items, limit))
        config.save_pretrained(aside)
        text = config.text_config
        GenerationConfig(
            bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
        ).save_pretrained(aside)
        processor.save_pretrained(aside)
        write_json(aside / PROVENANCE, {**record, "files": hash_files(aside)})
    return report


def _without_counterpart(checkpoint: Checkpoint, config: LlavaConfig) -> tuple[list[str], list[str]]:
    """Names of the tensors that our model does not have, and of those that it has under another name.

    Raises:
        UserError: a part of the pooling head is missing or misshapen.
    """
    entries = checkpoint.entries
    head = find_head(checkpoint, config.vision_config)
    if head:
        checkpoint.dtype(head, torch.float32)
    buffers = [name for name in entries if name == names.POSITION_IDS or names.is_inv_freq(name)]
    tied = config.tie_word_embeddings and names.HEAD_WEIGHT in entries
    return head + buffers, [names.HEAD_WEIGHT] if tied else []


def _check_buffers(checkpoint: Checkpoint, left_out: list[str], config: LlavaConfig) -> None:
    """Buffers are computed from the configuration: those that a checkpoint has must be what it gives.

    Raises:
        UserError: one is not.
    """
    text, vision = config.text_config, config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    rope = text.rope_parameters
    width = text.hidden_size // text.num_attention_heads
    width = int(width * rope.get("partial_rotary_factor", 1.0))
    frequencies = 1 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    for name in left_out:
        if name == names.POSITION_IDS:
            right = torch.equal(checkpoint.load(name).flatten().long(), torch.arange(patches))
        elif names.is_inv_freq(name):
            given = checkpoint.load(name).float()
            right = given.shape == frequencies.shape and torch.allclose(given, frequencies, rtol=1e-2)
        else:
            continue
        if not right:
            raise UserError(f"{checkpoint.folder}: {name}: not what {CONFIG} gives")
