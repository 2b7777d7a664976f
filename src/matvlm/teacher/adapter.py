"""What turns a language model that is given into a teacher: tower, connector and low-rank adapters (LoRA), in a
folder of a few MB that needs the language model beside it.

`vision.safetensors` holds tower and connector by their names in a LLaVA model, `adapter_model.safetensors` and
`adapter_config.json` the adapters as peft writes them, `config.json` the configuration of the whole.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from matvlm.config import Lora
from matvlm.errors import UserError
from matvlm.files import write_json, written_aside
from matvlm.models.folder import PROVENANCE, check_folder, hash_files

VISION = "vision.safetensors"
ADAPTERS, ADAPTERS_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SEEN = ("model.vision_tower.", "model.multi_modal_projector.")
"""Names of tower and connector in a LLaVA model begin so."""
DTYPE = torch.bfloat16
"""Type that adapters are written in: the teacher is what follows from the file, to the bit."""


def add_adapters(model: LlavaForConditionalGeneration, settings: Lora, seed: int) -> PeftModel:
    """Give the language model adapters that change nothing yet, and let them be trained beside what already is;
    ``seed`` is of their weights."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    torch.manual_seed(seed)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.modules))
    # In the type of what they adapt; peft would make them float32, and convert what they read and give.
    adapted = get_peft_model(model.model.language_model, config, autocast_adapter_dtype=False)
    for weight in trained:
        weight.requires_grad_(True)
    return adapted


def vision_weights(model: LlavaForConditionalGeneration) -> dict[str, nn.Parameter]:
    """Parameters of tower and connector by name."""
    return {name: weight for name, weight in model.named_parameters() if name.startswith(SEEN)}


def adapter_weights(adapted: PeftModel) -> dict[str, Tensor]:
    """The adapters alone, by peft's names; not the embedding, which it would add as one with new rows."""
    return get_peft_model_state_dict(adapted, save_embedding_layers=False)


def save_adapter(
    model: LlavaForConditionalGeneration, adapted: PeftModel, out: Path, record: dict, extra: dict[str, str]
) -> None:
    """Write what was trained in one rename.

    Args:
        adapted: what `add_adapters` returned. record: of `provenance.json`, beside the hashes of the files.
        extra: further text files by name.
    """
    with written_aside(out) as aside:
        weights = {name: weight.detach().cpu().contiguous() for name, weight in vision_weights(model).items()}
        save_file(weights, aside / VISION, metadata={"format": "pt"})
        adapters = {name: tensor.to(DTYPE).cpu() for name, tensor in adapter_weights(adapted).items()}
        save_file(adapters, aside / ADAPTERS, metadata={"format": "pt"})
        lora = adapted.peft_config["default"]
        write_json(
            aside / ADAPTERS_CONFIG,
            {
                "peft_type": "LORA",
                "r": lora.r,
                "lora_alpha": lora.lora_alpha,
                "target_modules": sorted(lora.target_modules),
                "inference_mode": True,
            },
        )
        model.config.save_pretrained(aside)
        for name, text in extra.items():
            (aside / name).write_text(text, encoding="utf-8")
        write_json(aside / PROVENANCE, {**record, "files": hash_files(aside)})


def apply_adapter(model: LlavaForConditionalGeneration, folder: Path, settings: Lora) -> dict:
    """Give a joined model the tower and connector of a folder, and merge its adapters into the language model.

    Args:
        settings: of the adapters, which must be the folder's.

    Returns:
        The folder's provenance.

    Raises:
        UserError: the folder is not whole, or its tensors are not those that ``model`` and ``settings`` ask for.
    """
    record = check_folder(folder)
    adapted = add_adapters(model, settings, seed=0)
    _fill(vision_weights(model), folder / VISION)
    _fill(adapter_weights(adapted), folder / ADAPTERS)
    model.model.language_model = adapted.merge_and_unload()
    model.requires_grad_(False)
    return record


@torch.no_grad()
def _fill(weights: dict[str, Tensor], path: Path) -> None:
    """Give ``weights`` the values of a file, which must have the same names and shapes."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    if difference := sorted(weights.keys() ^ stored.keys()):
        where = "lacks" if difference[0] in weights else "has, but params.yaml does not ask for,"
        raise UserError(f"{path}: {where} {difference[0]}, one of {len(difference)} such tensors")
    for name, weight in weights.items():
        if weight.shape != stored[name].shape:
            shapes = f"is {tuple(stored[name].shape)}, but params.yaml asks for {tuple(weight.shape)}"
            raise UserError(f"{path}: {name} {shapes}")
        weight.copy_(stored[name])
