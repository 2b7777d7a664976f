"""Reading a cache: rows in any order from mapped files, or shard after shard from whole ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from matvlm.distill.cache.manifest import MANIFEST, TOP_K, read_manifest
from matvlm.distill.forward import Needs
from matvlm.distill.losses import TopK
from matvlm.errors import UserError
from matvlm.provenance import file_hash

HELD = 2
"""Whole shards in memory: a batch may end one and begin the next."""


class CacheReader:
    """Reads batches of a cache. Each shard's hash is checked when it is first used.

    Args:
        expected: entries of `fingerprint` that the cache must have.
        whole: a shard is read from beginning to end when it is first used, and `HELD` are kept at most: for an
            order that takes one shard after another. Else files are mapped, and any row is as near as any other.

    Raises:
        UserError: no cache, one made for another configuration, or a shard cut short or altered.
    """

    def __init__(self, folder: Path, expected: dict, whole: bool = False) -> None:
        self.folder, self.whole = folder, whole
        self.manifest = read_manifest(folder, expected)
        try:
            self.lengths = np.asarray(self.manifest["rows"], dtype=np.int64)
            shards = [(shard["rows"], shard["file"], shard["sha256"]) for shard in self.manifest["shards"]]
            counts = np.asarray([rows for rows, _, _ in shards], dtype=np.int64)
            self.column = {int(point): column for column, point in enumerate(self.manifest["points"])}
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{folder / MANIFEST}: rows, shards or points missing or not as written") from None
        self.shard_of = np.repeat(np.arange(len(counts)), counts)
        self.first_row = np.concatenate([[0], np.cumsum(counts)])
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def require(self, layers: Iterable[int]) -> None:
        """Make sure that the states at inputs and outputs of ``layers`` are there.

        Raises:
            UserError: naming the first layer whose states were not cached.
        """
        held = [point for point in self.column if point + 1 in self.column]
        if missing := [layer for layer in layers if layer not in held]:
            cached = f"layers {', '.join(map(str, held))}" if held else "none"
            raise UserError(
                f"{self.folder}: has no states of layer {missing[0]}, but of {cached}; make the cache again with "
                "cache.states: all, or with this layout among those of the preset"
            )

    def read(self, rows: np.ndarray, needs: Needs, length: int, device: torch.device) -> dict:
        """The rows' targets, zero-padded on the right to ``length``.

        Returns:
            ``vision`` features, ``states`` by point, (b, l, d) each, and ``scores``: of positions (n,) of all b l
            ones in a row, logits (n, v) or `TopK`; none if they are not needed.
        """
        found: dict[str | int, Tensor] = {}
        for place, row in enumerate(map(int, rows)):
            for name, piece in self._row(row, needs).items():
                if name not in found:
                    shape = piece.shape if name == "vision" else (length, *piece.shape[1:])
                    found[name] = piece.new_zeros(len(rows), *shape)
                found[name][place, : len(piece)] = piece
        found = {name: tensor.to(device) for name, tensor in found.items()}
        return {
            "vision": found.pop("vision").float(),
            "states": {point: found.pop(point).float() for point in needs.points},
            "scores": _scores(found) if needs.scores else None,
        }

    def check(self) -> None:
        """Check the hash of every shard, and that they hold the rows that the manifest says.

        Raises:
            UserError: a shard is missing, cut short or altered, or the manifest contradicts itself.
        """
        if len(self.shard_of) != len(self.lengths):
            raise UserError(f"{self.folder / MANIFEST}: shards have {len(self.shard_of)} rows, not {len(self)}")
        for index, first in enumerate(self.first_row[:-1]):
            positions = int(self.lengths[first : self.first_row[index + 1]].sum())
            shard, name = self._shard(index), self.manifest["shards"][index]["file"]
            for tensor in (key for key in shard if key != "vision"):
                if (found := len(shard[tensor])) != positions:
                    raise UserError(
                        f"{self.folder / name}: holds {found} positions, not the {positions} of {MANIFEST}"
                    )

    def _row(self, row: int, needs: Needs) -> dict[str | int, Tensor]:
        """What is stored of a row, states by their points."""
        shard = int(self.shard_of[row])
        first = int(self.first_row[shard])
        start = int(self.lengths[first:row].sum())
        part = slice(start, start + int(self.lengths[row]))
        stored = self._shard(shard)
        found: dict[str | int, Tensor] = {"vision": stored["vision"][row - first]}
        found |= {point: stored["states"][part, self.column[point]] for point in needs.points}
        if needs.scores:
            found |= {name: stored[name][part] for name in stored if name not in ("vision", "states")}
        return found

    def _shard(self, index: int) -> dict[str, Tensor]:
        if index not in self._open:
            if self.whole and len(self._open) == HELD:
                del self._open[next(iter(self._open))]
            self._open[index] = self._load(index)
        return self._open[index]

    def _load(self, index: int) -> dict[str, Tensor]:
        entry = self.manifest["shards"][index]
        path = self.folder / entry["file"]
        if path.parent != self.folder or not path.is_file():
            raise UserError(f"{path}: missing, but {MANIFEST} lists it; make the cache again")
        content = path.read_bytes() if self.whole else b""
        digest = hashlib.sha256(content).hexdigest() if self.whole else file_hash(path)
        if digest != entry["sha256"]:
            raise UserError(f"{path}: cut short or altered; its hash is not the one in {MANIFEST}")
        try:
            return load(content) if self.whole else load_file(path)  # which maps it
        except SafetensorError as error:
            raise UserError(f"{path}: {error}") from None


def _scores(stored: dict[str | int, Tensor]) -> Callable[[Tensor], Tensor | TopK]:
    """The logits or their top k (b, l, …) at positions (n,) of all b l ones in a row."""
    flat = {name: tensor.flatten(0, 1) for name, tensor in stored.items()}
    if "logits" in flat:
        return lambda index: flat["logits"][index].float()
    return TopK(*(flat[name] for name in TOP_K)).__getitem__
