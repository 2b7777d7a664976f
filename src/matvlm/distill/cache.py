"""The teacher's answers on disk: logits (all, or the top k with the tail's mass), hidden states at every
layer and vision features, computed once and shared by all cells.

A cache is a folder of safetensors shards and a `manifest.json` with their hashes. In a shard the real
positions of its conversations stand one after another, without padding:
``states`` (positions, layers + 1, d), ``vision`` (conversations, image tokens, vision width), and
``logits`` (positions, v) or ``top_values``, ``top_indices`` (positions, k) and ``tail`` (positions,).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from matvlm import config, provenance
from matvlm.data.dataset import InMemoryDataset, load_split
from matvlm.data.processor import load_processor
from matvlm.distill.forward import Needs, TeacherPass, teacher_pass
from matvlm.distill.losses import TopK
from matvlm.errors import UserError, one_line
from matvlm.files import write_json, written_aside
from matvlm.models.folder import load_model
from matvlm.progress import progress
from matvlm.training.device import pick_device
from matvlm.training.memory import fits

MANIFEST = "manifest.json"
FORMAT = 1


def build(
    settings: config.Cache, teacher: Path, data: Path, max_length: int, out: Path, device: torch.device
) -> None:
    """Run the teacher over a split and write its cache in one rename. With mode `online` that is a manifest
    without rows, so that there is something to version and to depend on."""
    manifest = fingerprint(settings, teacher, data, max_length) | {"shards": [], "rows": []}
    if settings.mode == "online":
        with written_aside(out) as aside:
            write_json(aside / MANIFEST, manifest)
        return
    with fits(f"{teacher}: its weights", device):
        model = load_model(teacher).to(device)
    dataset = load_split(data, load_processor(teacher), max_length).vary()
    with written_aside(out) as aside:
        starts = range(0, len(dataset), settings.shard_size)
        with progress(starts, "cache_teacher") as bar:
            for number, start in enumerate(bar):
                rows = np.arange(start, min(start + settings.shard_size, len(dataset)))
                name = f"shard-{number:05d}.safetensors"
                with fits(f"{teacher}: its outputs for a batch of conversations", device):
                    tensors, lengths = _shard(model, dataset, rows, settings, device)
                save_file(tensors, aside / name)
                manifest["shards"].append(
                    {"file": name, "rows": len(rows), "sha256": provenance.file_hash(aside / name)}
                )
                manifest["rows"] += lengths
        write_json(aside / MANIFEST, manifest)


def fingerprint(settings: config.Cache, teacher: Path, data: Path, max_length: int) -> dict:
    """What a cache depends on; two caches with the same one are interchangeable."""
    return {
        "format": FORMAT,
        "mode": settings.mode,
        "top_k": settings.top_k if settings.mode == "topk" else None,
        "dtype": settings.dtype,
        "max_length": max_length,
        "teacher_hash": provenance.model_hash(teacher),
        "data_hash": provenance.data_hash(data),
    }


class CacheReader:
    """Reads batches of a cache. Each shard's hash is checked when it is first used.

    Args:
        expected: entries of `fingerprint` that the cache must have.

    Raises:
        UserError: no cache, one made for another configuration, or a shard cut short or altered.
    """

    def __init__(self, folder: Path, expected: dict) -> None:
        self.folder = folder
        try:
            self.manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{folder / MANIFEST}: missing or not JSON; make the cache again") from None
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise UserError(f"{folder / MANIFEST}: not a cache of format {FORMAT}; make the cache again")
        for key, value in expected.items():
            if self.manifest.get(key) != value:
                found = self.manifest.get(key)
                raise UserError(f"{folder}: cache was made with {key} {found!r}, but {value!r} is asked for")
        try:
            self.lengths = np.asarray(self.manifest["rows"], dtype=np.int64)
            shards = [(shard["rows"], shard["file"], shard["sha256"]) for shard in self.manifest["shards"]]
            counts = np.asarray([rows for rows, _, _ in shards], dtype=np.int64)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{folder / MANIFEST}: rows or shards missing or not as written") from None
        self.shard_of = np.repeat(np.arange(len(counts)), counts)
        self.first_row = np.concatenate([[0], np.cumsum(counts)])
        self._open: dict[int, object] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, rows: np.ndarray, needs: Needs, length: int, device: torch.device) -> dict:
        """The rows' targets, zero-padded on the right to ``length``.

        Returns:
            ``vision`` features, ``states`` by point, (b, l, d) each, and ``scores``: of positions (n,) of all b l
            ones in a row, logits (n, v) or `TopK`; none if they are not needed.
        """
        parts = [self._row(int(row), needs) for row in rows]
        padded = {
            name: torch.stack([_pad(part[name], length) for part in parts]).to(device)
            for name in parts[0]
            if name != "vision"
        }
        vision = torch.stack([part["vision"] for part in parts]).to(device).float()
        stacked = padded.pop("states").float().unbind(2) if needs.points else ()
        return {
            "vision": vision,
            "states": dict(zip(needs.points, stacked, strict=True)),
            "scores": _scores(padded) if needs.scores else None,
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
            found = self._shard(index).get_slice("states").get_shape()[0]
            if found != positions:
                name = self.manifest["shards"][index]["file"]
                raise UserError(
                    f"{self.folder / name}: holds {found} positions, not the {positions} of {MANIFEST}"
                )

    def _row(self, row: int, needs: Needs) -> dict[str, Tensor]:
        shard = int(self.shard_of[row])
        first = int(self.first_row[shard])
        start = int(self.lengths[first:row].sum())
        end = start + int(self.lengths[row])
        stream = self._shard(shard)
        names = [name for name in stream.keys() if name not in ("vision", "states")]  # noqa: SIM118
        part = {name: stream.get_slice(name)[start:end] for name in names if needs.scores}
        if needs.points:
            part["states"] = stream.get_slice("states")[start:end][:, list(needs.points)]
        part["vision"] = stream.get_slice("vision")[row - first]
        return part

    def _shard(self, index: int):
        if index not in self._open:
            entry = self.manifest["shards"][index]
            path = self.folder / entry["file"]
            if path.parent != self.folder or not path.is_file():
                raise UserError(f"{path}: missing, but {MANIFEST} lists it; make the cache again")
            if provenance.file_hash(path) != entry["sha256"]:
                raise UserError(f"{path}: cut short or altered; its hash is not the one in {MANIFEST}")
            try:
                self._open[index] = safe_open(path, "pt")
            except SafetensorError as error:
                raise UserError(f"{path}: {error}") from None
        return self._open[index]


def _shard(
    model, dataset: InMemoryDataset, rows: np.ndarray, settings: config.Cache, device: torch.device
) -> tuple[dict[str, Tensor], list[int]]:
    parts: list[dict[str, Tensor]] = []
    lengths: list[int] = []
    needs = Needs(tuple(range(model.config.text_config.num_hidden_layers + 1)), scores=True)
    for start in range(0, len(rows), 16):
        batch = dataset.batch(rows[start : start + 16], device)
        real = batch["attention_mask"].bool()
        parts.append(_tensors(teacher_pass(model, batch, needs), model.lm_head, real, settings))
        lengths += real.sum(1).tolist()
    names = parts[0].keys()
    return {name: torch.cat([part[name] for part in parts]) for name in names}, lengths


@torch.no_grad()
def _tensors(passed: TeacherPass, head: nn.Linear, real: Tensor, settings: config.Cache) -> dict[str, Tensor]:
    dtype = getattr(torch, settings.dtype)
    states = [passed.states[point][real].to(dtype) for point in sorted(passed.states)]
    tensors = {"states": torch.stack(states, dim=1), "vision": passed.vision.to(dtype)}
    logits = head(passed.hidden[real])
    if settings.mode == "topk":
        top = TopK.of(logits, settings.top_k)
        tensors |= {"top_values": top.values, "top_indices": top.indices.int(), "tail": top.tail}
    else:
        tensors["logits"] = logits.to(dtype)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _scores(stored: dict[str, Tensor]) -> Callable[[Tensor], Tensor | TopK]:
    """The logits or their top k (b, l, …) at positions (n,) of all b l ones in a row."""
    flat = {name: tensor.flatten(0, 1) for name, tensor in stored.items()}
    if "logits" in flat:
        return lambda index: flat["logits"][index].float()
    values, indices, tail = (flat[name] for name in ("top_values", "top_indices", "tail"))
    return lambda index: TopK(values[index].float(), indices[index].long(), tail[index].float())


def _pad(tensor: Tensor, length: int) -> Tensor:
    out = tensor.new_zeros(length, *tensor.shape[1:])
    out[: len(tensor)] = tensor
    return out


@one_line
def main(argv: list[str] | None = None) -> None:
    """`python -m matvlm.distill.cache`: write the teacher's cache of a split."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    settings = config.parse_settings(config.Cache, args.settings)
    build(settings, args.teacher, args.data, args.max_length, args.out, pick_device(args.device))


if __name__ == "__main__":
    raise SystemExit(main())
