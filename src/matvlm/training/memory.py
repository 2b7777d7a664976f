"""What to say when a GPU has no room for a micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from matvlm.config import Optimisation
from matvlm.errors import UserError
from matvlm.training.ranks import count


@contextmanager
def room(title: str, settings: Optimisation) -> Iterator[None]:
    """Turn a GPU's running out of memory into one line that names the setting to change.

    Raises:
        UserError: in place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"{title}: out of GPU memory: {advice(settings)}") from None


@contextmanager
def fits(what: str, device: torch.device) -> Iterator[None]:
    """Turn a GPU's running out of memory, where no setting of a training helps, into one line.

    Args:
        what: was to fit, with the setting that makes it smaller if there is one.

    Raises:
        UserError: in place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"{what}: does not fit into the memory of {device}") from None


def advice(settings: Optimisation) -> str:
    """The settings that make a micro-batch need about half of its memory, or else less."""
    size = settings.micro_batch_size
    smaller = next((n for n in range(size // 2, 0, -1) if settings.batch_size % n == 0), None)
    options = []
    if smaller is not None:
        kind = "half" if 2 * smaller == size else "less than half"
        options.append(f"micro_batch_size: {smaller} (now {size}) takes {kind} of a micro-batch's memory")
    if getattr(settings, "gradient_checkpointing", True) is False:
        options.append("gradient_checkpointing: true keeps a fraction of the activations")
    if getattr(settings, "head_chunk", 0) > 128:
        options.append(
            f"head_chunk: {settings.head_chunk // 2} (now {settings.head_chunk}) halves the logits held"
        )
    if getattr(settings, "shard_frozen", True) is False and count() > 1:
        options.append(f"shard_frozen: true leaves each process about 1/{count()} of the frozen weights")
    if settings.precision != "bfloat16":
        options.append("precision: bfloat16 halves what is held")
    return ", or ".join(options) or "neither micro_batch_size nor precision can be smaller; use a larger GPU"
