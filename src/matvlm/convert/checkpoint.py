"""A folder of safetensors files: read by header, checked as a set, written in shards of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from matvlm.convert.read import read_object
from matvlm.errors import UserError
from matvlm.files import write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that weights may have, by their names in safetensors."""
SHARD_BYTES = 1_000_000_000
"""Most bytes of a file written, and so what a conversion holds in memory. A larger tensor has a file alone."""
SHOWN = 10
"""Names listed of each thing that is wrong."""


@dataclass(frozen=True)
class Entry:
    """A tensor as its file's header describes it; ``dtype`` in safetensors' names."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A tensor to write: its size is known before ``load`` is called."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """Tensors of a folder, one file or a whole set of shards.

    Attributes:
        entries: by name, in the order of files and names.

    Raises:
        UserError: no safetensors, half a set of shards, an index that names other files than the folder has, a
            file that is cut short, or a tensor in another file than the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        mapped = self._index()
        for name in sorted(set(mapped.values())) if mapped is not None else [SINGLE]:
            self._read(folder / name)
        if mapped is not None:
            self._check_index(mapped)

    def load(self, name: str) -> Tensor:
        """A tensor as it is on disk: pages of the file, mapped until the tensor goes."""
        with safe_open(self.entries[name].file, "pt") as file:
            return file.get_tensor(name)

    def dtype(self, names: Iterable[str], wanted: torch.dtype | None = None) -> torch.dtype:
        """``wanted``, or else the one type that the tensors ``names`` have.

        Raises:
            UserError: they have several and none is wanted, or one that no weights may have.
        """
        by_type: dict[str, str] = {}
        for name in names:
            by_type.setdefault(self.entries[name].dtype, name)
        if unknown := sorted(by_type.keys() - DTYPES.keys()):
            raise UserError(
                f"{self.folder}: {by_type[unknown[0]]} is {unknown[0]}; allowed: {', '.join(DTYPES)} "
                "(quantised weights cannot be converted)"
            )
        if wanted is not None:
            return wanted
        if len(by_type) != 1:
            found = ", ".join(f"{dtype} ({by_type[dtype]})" for dtype in sorted(by_type))
            raise UserError(f"{self.folder}: tensors of several types: {found}; --dtype makes them one")
        return DTYPES[next(iter(by_type))]

    def _index(self) -> dict[str, str] | None:
        """The index's map from tensors to files, or none of a single file."""
        files = sorted(path.name for path in self.folder.glob("*.safetensors"))
        index = self.folder / INDEX
        if not files:
            raise UserError(f"{self.folder}: {_no_weights(self.folder)}")
        if not index.is_file():
            if files == [SINGLE]:
                return None
            raise UserError(f"{index}: missing; without it only a folder with {SINGLE} alone can be read")
        mapped = read_object(index).get("weight_map")
        if (
            not isinstance(mapped, dict)
            or not all(isinstance(name, str) for name in mapped.values())
            or not mapped
        ):
            raise UserError(f"{index}: weight_map: must map the names of tensors to names of files")
        for name in sorted(set(mapped.values())):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(f"{index}: weight_map: {name!r} is no name of a .safetensors file of this folder")
        wanted = set(mapped.values())
        if lacking := sorted(wanted - set(files)):
            raise UserError(f"{self.folder}: {len(lacking)} of {len(wanted)} shards missing: {listed(lacking)}")
        if extra := sorted(set(files) - wanted):
            raise UserError(f"{self.folder}: not in {INDEX}: {listed(extra)}")
        return mapped

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                for name in sorted(file.keys()):
                    if name in self.entries:
                        raise UserError(f"{path}: {name} is in {self.entries[name].file.name} too")
                    part = file.get_slice(name)
                    self.entries[name] = Entry(path, part.get_dtype(), tuple(part.get_shape()))
        except SafetensorError as error:
            raise UserError(f"{path}: cut short or no safetensors file: {str(error).splitlines()[0]}") from None

    def _check_index(self, mapped: dict[str, str]) -> None:
        wrong = [name for name, entry in self.entries.items() if mapped.get(name) != entry.file.name]
        if wrong:
            raise UserError(f"{self.folder / INDEX}: weight_map: wrong or silent about: {listed(wrong)}")
        if lacking := sorted(mapped.keys() - self.entries.keys()):
            raise UserError(f"{self.folder}: in {INDEX}, but in no file: {listed(lacking)}")


def write_shards(folder: Path, items: list[Item], limit: int = SHARD_BYTES) -> int:
    """Write tensors in the order given, at most ``limit`` bytes at a time, with an index if that takes several
    files. Returns how many files.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    shards: list[list[Item]] = [[]]
    for item in items:
        if shards[-1] and sum(other.bytes for other in shards[-1]) + item.bytes > limit:
            shards.append([])
        shards[-1].append(item)
    count = len(shards)
    mapped: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file({item.name: item.load() for item in shard}, folder / name, metadata={"format": "pt"})
        mapped |= {item.name: name for item in shard}
    if count > 1:
        total = sum(item.bytes for item in items)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": mapped})
    return count


def listed(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")):
        return (
            "only pickled weights (.bin), which are not read; of a source that you trust, make safetensors first: "
            "safetensors.torch.save_file(torch.load('pytorch_model.bin', weights_only=True), 'model.safetensors')"
        )
    return f"no weights: neither {SINGLE} nor {INDEX} with its shards"
