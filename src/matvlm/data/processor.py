"""The processor of a LLaVA model: tokenizer, SigLIP image processor, and how many tokens an image takes."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from transformers import AutoTokenizer, LlavaProcessor, PreTrainedTokenizerBase
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from matvlm.data.errors import DataError


def build_image_processor(image_size: int) -> SiglipImageProcessorPil:
    """SigLIP's preprocessing: a plain resize to a square, values to [-1, 1].

    Always the Pillow variant. The library's default is torchvision's where that is installed, whose resize
    differs by a few grey levels, so that results would depend on what else is installed.
    """
    return SiglipImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build_processor(
    tokenizer: PreTrainedTokenizerBase, image_size: int, patch_size: int, select_strategy: str = "full"
) -> LlavaProcessor:
    """A processor that writes as many `<image>` tokens as image features reach the language model.

    Args:
        tokenizer: with a token `<image>`.
        image_size, patch_size: of the vision tower, in pixels.
        select_strategy: `full` keeps all (image_size / patch_size)^2 patches; `default` drops the first, as
            the release does although SigLIP has no class token.
    """
    return LlavaProcessor(
        image_processor=build_image_processor(image_size),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy=select_strategy,
        num_additional_image_tokens=0,
    )


def load_processor(folder: Path) -> LlavaProcessor:
    """The processor in a model folder, with the Pillow image processor whatever is installed.

    Raises:
        DataError: a file is missing or not what it should be.
    """
    try:
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        return LlavaProcessor(
            image_processor=SiglipImageProcessorPil.from_pretrained(folder, local_files_only=True),
            tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            patch_size=settings["patch_size"],
            vision_feature_select_strategy=settings["vision_feature_select_strategy"],
            num_additional_image_tokens=settings["num_additional_image_tokens"],
        )
    except KeyError as error:
        raise DataError(f"{folder / 'processor_config.json'}: lacks {error}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no processor of a LLaVA model: {str(error).splitlines()[0]}") from None


def count_image_tokens(processor: LlavaProcessor) -> int:
    """Tokens that one image takes in the text."""
    size = processor.image_processor.size
    patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return patches + processor.num_additional_image_tokens - dropped
