"""Models on disk: complete Hugging Face folders, loaded strictly and checked against their own hashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging

import matvlm.models  # noqa: F401  registers the hybrid text models
from matvlm.errors import UserError
from matvlm.files import write_json, written_aside
from matvlm.models.llava import CLASSES
from matvlm.provenance import file_hash

PROVENANCE = "provenance.json"
INDEX = "model.safetensors.index.json"
FLOATS = ("F16", "BF16", "F32", "F64")
"""Types that weights may have, as safetensors names them."""
logging.disable_progress_bar()


def save_model(
    model: PreTrainedModel,
    out: Path,
    provenance: dict,
    *,
    processor: object | None = None,
    like: Path | None = None,
    extra: dict[str, str] | None = None,
) -> None:
    """Write a model folder in one rename.

    Args:
        provenance: what `provenance.json` says, beside the hashes of the folder's files.
        processor: or tokenizer, written into the folder; or else taken over from the model folder ``like``.
        extra: further text files by name.
    """
    with written_aside(out) as aside:
        model.save_pretrained(aside)
        if processor is not None:
            processor.save_pretrained(aside)
        if like is not None:
            own = {path.name for path in aside.iterdir()} | {PROVENANCE, INDEX}
            for path in like.iterdir():
                if path.suffix in (".json", ".jinja") and path.name not in own:
                    shutil.copy(path, aside / path.name)
        for name, text in (extra or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
        write_json(aside / PROVENANCE, {**provenance, "files": hash_files(aside)})


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model folder by name, without `provenance.json`, which holds them."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != PROVENANCE)
    return {path.name: file_hash(path) for path in files}


def check_folder(folder: Path) -> dict:
    """Provenance of a model folder, after checking that its files are whole.

    Raises:
        UserError: no such folder, a file missing, one that differs from its recorded hash, or weights without one.
    """
    for name in ("config.json", PROVENANCE):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; a model folder has config.json, weights and {PROVENANCE}")
    try:
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        files = provenance["files"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / PROVENANCE}: not a provenance file with an entry 'files'") from None
    if not isinstance(files, dict) or not files:
        raise UserError(f"{folder / PROVENANCE}: files: must map the names of the folder's files to their hashes")
    if unlisted := sorted(path.name for path in folder.glob("*.safetensors") if path.name not in files):
        raise UserError(f"{folder / PROVENANCE}: files: lacks {', '.join(unlisted)}, which the folder has")
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"{folder / PROVENANCE}: files: lists no weights, *.safetensors")
    _check_index(folder, files)
    for name, digest in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise UserError(f"{path}: missing, but {PROVENANCE} lists it")
        if file_hash(path) != digest:
            raise UserError(f"{path}: cut short or altered; its hash is not the one in {PROVENANCE}")
    return provenance


def _check_index(folder: Path, files: dict[str, str]) -> None:
    """Whether an index of shards names files of the folder alone, and those that are listed."""
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not an index with an entry 'weight_map'") from None
    if unlisted := sorted(map(str, named - set(files))):
        raise UserError(f"{index}: weight_map: names {unlisted[0]!r}, which {PROVENANCE} does not list")


def _check_types(folder: Path) -> None:
    """Whether all tensors are floating-point numbers."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    kind = file.get_slice(name).get_dtype()
                    if kind not in FLOATS:
                        raise UserError(f"{path}: {name}: is {kind}; weights are {', '.join(FLOATS)}")
        except SafetensorError as error:
            raise UserError(f"{path}: {error}") from None


def load_model(folder: Path, **kwargs) -> LlavaForConditionalGeneration:
    """A teacher or student from its folder, strictly: every tensor there, none left over, in evaluation mode.

    Args:
        kwargs: for `from_pretrained`, such as ``dtype``.

    Raises:
        UserError: the folder is not whole, or its tensors are not those that its config asks for.
    """
    check_folder(folder)
    return load_checked(folder, **kwargs)


def read_config(folder: Path) -> LlavaConfig:
    """The configuration of a model folder.

    Raises:
        UserError: it is no LLaVA model's, or cannot be read.
    """
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path}: missing or not the JSON of a model's configuration") from None
    if not isinstance(kind, str) or kind not in CLASSES:
        raise UserError(
            f"{path}: model_type: is {kind!r}; teachers and students are {' or '.join(map(repr, CLASSES))}"
        )
    try:
        return CLASSES[kind].config_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split()) or 'unreadable'}") from None


def load_checked(folder: Path, **kwargs) -> LlavaForConditionalGeneration:
    """As `load_model`, of a folder that `check_folder` has just found whole."""
    _check_types(folder)
    return load_strictly(CLASSES[read_config(folder).model_type], folder, **kwargs)


def load_strictly(kind: type, folder: Path, **kwargs) -> PreTrainedModel:
    """A model of a class of transformers, or of one of its Auto classes, in evaluation mode.

    Raises:
        UserError: the folder's tensors are not those that its config asks for.
    """
    try:
        model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **kwargs)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: {str(error).splitlines()[0]}") from None
    for wrong in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[wrong]:
            names = ", ".join(sorted(str(name) for name in info[wrong])[:5])
            raise UserError(f"{folder}: {wrong.replace('_', ' ')}: {names}")
    return model.eval()


def stored_tensors(folder: Path, model: LlavaForConditionalGeneration) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a folder that `check_folder` has found whole, one at a time, by their names in ``model``.

    Raises:
        UserError: a file that is no safetensors file.
    """
    renamings = get_model_conversion_mapping(model)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for stored in file.keys():  # noqa: SIM118
                    name = stored
                    for renaming in renamings:
                        name, _ = renaming.rename_source_key(name)
                    yield name, file.get_tensor(stored)
        except SafetensorError as error:
            raise UserError(f"{path}: {error}") from None
