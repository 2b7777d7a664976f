"""Making a cache shard by shard, in one job or in many, each of which can be killed and goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from matvlm.config import Cache
from matvlm.data.dataset import InMemoryDataset, count_rows, load_split
from matvlm.data.processor import load_processor
from matvlm.distill.cache.manifest import MANIFEST, TOP_K, fingerprint
from matvlm.distill.forward import Needs, TeacherPass, points_of, teacher_pass
from matvlm.distill.losses import TopK
from matvlm.errors import UserError
from matvlm.files import file_aside, write_json, written_aside
from matvlm.models.folder import load_model, read_config
from matvlm.progress import progress
from matvlm.provenance import file_hash, settings_hash
from matvlm.training.memory import fits

BATCH = 16
"""Conversations that the teacher sees at a time."""
CHUNK = 1024
"""Positions whose logits are there at a time."""


class Writer:
    """Makes shards in a folder of state. Each appears in one rename and is recorded beside it: what has a record
    need not be made again. Teacher and data are read when the first shard is to be made.

    Args:
        teacher: its folder. data: of the split. max_length: positions of a conversation.
        layers: whose states, at input and output, to keep; none for all.
        state: folder for what is not finished. What was begun for another cache is left alone there.

    Raises:
        UserError: a layer that the teacher has not.
    """

    def __init__(
        self,
        settings: Cache,
        teacher: Path,
        data: Path,
        max_length: int,
        state: Path,
        device: torch.device,
        layers: Collection[int] | None = None,
    ) -> None:
        self.settings, self.teacher, self.data, self.max_length = settings, teacher, data, max_length
        depth = read_config(teacher).text_config.num_hidden_layers
        if wrong := [layer for layer in layers or () if not 0 <= layer < depth]:
            raise UserError(f"--layers: {wrong[0]} is out of range; {teacher} has 0 to {depth - 1}")
        self.points = list(points_of(range(depth) if layers is None else layers))
        self.device = device
        self.fingerprint = fingerprint(settings, teacher, data, max_length)
        self.made_for = settings_hash([self.fingerprint, self.points, settings.shard_size])
        self.state = state / self.made_for
        rows = 0 if settings.mode == "online" else count_rows(data)
        self.parts = [range(i, min(i + settings.shard_size, rows)) for i in range(0, rows, settings.shard_size)]
        """Rows of each shard."""

    def make(self, part: int, parts: int) -> list[str]:
        """Every so many-th shard, from number ``part`` on; the names of their files. What is there already is
        checked by its hash.

        Raises:
            UserError: a teacher or data that cannot be used.
        """
        numbers = range(part, len(self.parts), parts)
        return [self._ensure(number)["file"] for number in _shown(numbers, f"cache_part {part}")]

    def gather(self, out: Path, checked: Collection[str] = ()) -> None:
        """Write the cache in one rename, of shards that are there, and of those that have to be made. With mode
        `online` that is a manifest without rows, so that there is something to version and to depend on.

        Args:
            checked: names of shards that `make` returned, whose hashes are not checked again.
        """
        numbers = range(len(self.parts))
        shards = [self._ensure(number, checked) for number in _shown(numbers, "cache_teacher")]
        manifest = self.fingerprint | {
            "points": self.points,
            "shard_size": self.settings.shard_size,
            "shards": [{key: shard[key] for key in ("file", "rows", "sha256")} for shard in shards],
            "rows": [length for shard in shards for length in shard["lengths"]],
        }
        with written_aside(out) as aside:
            for shard in shards:
                _place(self.state / shard["file"], aside / shard["file"])
            write_json(aside / MANIFEST, manifest)

    def _ensure(self, number: int, checked: Collection[str] = ()) -> dict:
        """The record of a shard, which is made unless it is there."""
        path = self.state / f"shard-{number:05d}.safetensors"
        record = path.with_suffix(".json")
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            said = found["made_for"], found["file"], found["bytes"]
            sound = said == (self.made_for, path.name, path.stat().st_size)
            if sound and (path.name in checked or file_hash(path) == found["sha256"]):
                return found
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or written halfway by something else than this
        with fits(f"{self.teacher}: its outputs for a batch of conversations", self.device):
            tensors, lengths = self._shard(np.asarray(self.parts[number]))
        record.unlink(missing_ok=True)  # it would speak of another file than the one that comes
        with file_aside(path) as aside:
            save_file(tensors, aside)
            digest = file_hash(aside)
        found = {"file": path.name, "rows": len(self.parts[number]), "lengths": lengths, "made_for": self.made_for}
        found |= {"sha256": digest, "bytes": path.stat().st_size}
        write_json(record, found)
        return found

    @cached_property
    def _model(self):
        with fits(f"{self.teacher}: its weights", self.device):
            return load_model(self.teacher).to(self.device)

    @cached_property
    def _dataset(self) -> InMemoryDataset:
        return load_split(self.data, load_processor(self.teacher), self.max_length).vary()

    def _shard(self, rows: np.ndarray) -> tuple[dict[str, Tensor], list[int]]:
        made: list[dict[str, Tensor]] = []
        lengths: list[int] = []
        needs = Needs(tuple(self.points), scores=True)
        # The same tokens whichever job makes the shard, and whatever it has made before.
        draw = torch.Generator(self.device).manual_seed(int(rows[0]))
        for start in range(0, len(rows), BATCH):
            batch = self._dataset.batch(rows[start : start + BATCH], self.device)
            real = batch["attention_mask"].bool()
            made.append(
                _tensors(teacher_pass(self._model, batch, needs), self._model.lm_head, real, self.settings, draw)
            )
            lengths += real.sum(1).tolist()
        return {name: torch.cat([each[name] for each in made]) for name in made[0]}, lengths


@torch.no_grad()
def _tensors(
    passed: TeacherPass, head: nn.Linear, real: Tensor, settings: Cache, draw: torch.Generator
) -> dict[str, Tensor]:
    dtype = getattr(torch, settings.dtype)
    tensors = {"vision": passed.vision.to(dtype)}
    if passed.states:
        states = [passed.states[point][real].to(dtype) for point in sorted(passed.states)]
        tensors["states"] = torch.stack(states, dim=1)
    scores = [_scores(head(part), settings, draw) for part in passed.hidden[real].split(CHUNK)]
    tensors |= {name: torch.cat([part[name] for part in scores]) for name in scores[0]}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _scores(logits: Tensor, settings: Cache, draw: torch.Generator) -> dict[str, Tensor]:
    """What is kept of logits (n, v), in memory of the CPU."""
    if settings.mode == "full":
        return {"logits": logits.to(getattr(torch, settings.dtype)).cpu()}
    top = TopK.of(logits, settings.top_k, settings.tail_draws, draw)
    kept = (top.values, top.indices.int(), top.tail, top.drawn_values, top.drawn_indices.int())
    return {name: tensor.cpu() for name, tensor in zip(TOP_K, kept, strict=True)}


def _shown(numbers: range, title: str) -> Iterator[int]:
    with progress(numbers, title) as bar:
        yield from bar


def _place(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
