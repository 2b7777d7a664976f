"""What a cache says of itself, and whether it is the one that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

from matvlm.config import Cache
from matvlm.data.conversations import IMAGE
from matvlm.data.processor import load_processor
from matvlm.data.render import pieces
from matvlm.errors import UserError
from matvlm.provenance import data_hash, files_hash, model_hash, settings_hash

MANIFEST = "manifest.json"
FORMAT = 2
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOP_K = ("top_values", "top_indices", "tail", "drawn_values", "drawn_indices")
"""Names in a shard of the fields of `matvlm.distill.losses.TopK`."""
PROBE = [(f"{IMAGE}\nquestion", "answer"), ("question", "answer")]
"""A conversation with all that a prompt can have: its rendering tells prompts apart."""


def fingerprint(settings: Cache, teacher: Path, data: Path, max_length: int) -> dict:
    """What a cache depends on; two caches with the same one are interchangeable, but for the states they keep and
    for which tokens were drawn, in which shard size and device have a part.

    What is more particular comes first: a teacher with another tokenizer is another teacher too.
    """
    size = load_processor(teacher).image_processor.size
    return {
        "format": FORMAT,
        "mode": settings.mode,
        "top_k": settings.top_k if settings.mode == "topk" else None,
        "tail_draws": settings.tail_draws if settings.mode == "topk" else None,
        "dtype": settings.dtype,
        "max_length": max_length,
        "prompt_hash": settings_hash([(piece.text, piece.label, piece.eos) for piece in pieces(PROBE)]),
        "tokenizer_hash": files_hash(teacher / name for name in TOKENIZER),
        "image_size": f"{size['height']}x{size['width']}",
        "processor_hash": files_hash([teacher / "processor_config.json"]),
        "teacher_hash": model_hash(teacher),
        "data_hash": data_hash(data),
    }


def read_manifest(folder: Path, expected: dict) -> dict:
    """The manifest of a cache.

    Args:
        expected: entries of `fingerprint` that the cache must have.

    Raises:
        UserError: no cache, or one made with something else, which the message names.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or not JSON; make the cache again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not a cache of format {FORMAT}; make the cache again")
    for key, value in expected.items():
        if (found := manifest.get(key)) != value:
            raise UserError(
                f"{folder}: cache was made with {key} {found!r}, but {value!r} is asked for; make the cache again"
            )
    return manifest
