"""The tensors that a conversion writes, made from those that it reads, and what it says it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from matvlm import provenance
from matvlm.convert.checkpoint import Checkpoint, Item
from matvlm.convert.match import Shapes
from matvlm.errors import UserError


@dataclass
class Report:
    """What a conversion did, for its caller to say.

    Attributes:
        tensors, bytes, files: written. left_out: what of the source has no counterpart. added: what has none in
            the source. notes: what else a user must know.
    """

    tensors: int = 0
    bytes: int = 0
    files: int = 0
    left_out: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self, way: str, source: dict, dtype: torch.dtype) -> dict:
        """What the provenance file of the folder written says, beside the hashes of its files.

        Args:
            way: name of the conversion. source: what to say of the folder read. dtype: of the weights written.
        """
        return {
            "step": "convert",
            "source": source,
            "left_out": self.left_out,
            "added": self.added,
            "provenance": provenance.describe({"convert": way, "dtype": str(dtype)}),
        }

    def count(self, items: list[Item], files: int) -> None:
        """Note what was written."""
        self.tensors, self.bytes, self.files = len(items), sum(item.bytes for item in items), files


def make_items(checkpoint: Checkpoint, targets: dict[str, str], shapes: Shapes, dtype: torch.dtype) -> list[Item]:
    """Tensors to write, in the order in which the checkpoint's files hold them.

    Args:
        targets: names to write under, by names in the checkpoint. shapes: by names to write under.
    """

    def loader(name: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        return lambda: _with_rows(_cast(checkpoint.load(name), dtype, name), shape)

    return [
        Item(targets[name], shapes[targets[name]], dtype, loader(name, shapes[targets[name]]))
        for name in checkpoint.entries
        if name in targets
    ]


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in another type.

    Raises:
        UserError: a finite number becomes infinite in it.
    """
    if tensor.dtype == dtype:
        return tensor
    made = tensor.to(dtype)
    if not made.isfinite().all() and tensor.isfinite().all():
        raise UserError(f"{name}: has numbers too large for {str(dtype).removeprefix('torch.')}")
    return made


def _with_rows(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``rows`` (n, …) cut to fewer, or with their mean below.

    In a head the new logit is then the mean of the others, and so, exp being convex, its probability at most
    1 / (n + 1). The row of an embedding is never read, since features of the image stand in its places.
    """
    if rows.shape == shape:
        return rows
    if shape[0] < len(rows):
        return rows[: shape[0]].clone()
    mean = rows.mean(0, keepdim=True, dtype=torch.float32).to(rows.dtype)
    return torch.cat([rows, mean.expand(shape[0] - len(rows), *shape[1:])])
