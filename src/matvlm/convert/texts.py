"""The tokenizer of a release: found, given a token `<image>`, and made into a processor.

The release has no image token. It cuts its prompts at `<image>`, tokenises the parts and puts the index -200
between them. LLaVA wants a token; it gets the first id that the tokenizer does not use. Phi-2 has 51200 rows of
embeddings and 50295 tokens, so the id is 50295 and the weights stay as they are: LLaVA puts the features of the
image in the place of that row. A vocabulary without a spare row gets one more.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, LlavaConfig, LlavaProcessor, PreTrainedTokenizerBase

from matvlm.data.conversations import IMAGE
from matvlm.data.processor import build_processor
from matvlm.errors import UserError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
"""Files of a tokenizer."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""Those of which a folder with a tokenizer has one."""


def load_tokenizer(folder: Path, raw: dict) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, with `<image>`, and padding as the release has it.

    Args:
        raw: the release's `config.json`.

    Raises:
        UserError: the folder has none that can be read without its own code, or it has no end-of-text token.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UserError(
            f"{folder}: no tokenizer ({', '.join(VOCABULARIES)}); --tokenizer names a folder with the language "
            f"model's, of {raw.get('tokenizer_name_or_path') or raw.get('llm_model_name_or_path')!r}"
        )
    # Without the model's config.json, whose type and code the library would look for.
    with tempfile.TemporaryDirectory() as alone:
        for name in FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, alone)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                alone,
                local_files_only=True,
                trust_remote_code=False,
                extra_special_tokens={"image_token": IMAGE},
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"{folder}: no tokenizer: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end-of-text token (eos_token)")
    # As the release's post_load: phi and tinyllama pad with the unknown token.
    padding = tokenizer.pad_token or raw.get("pad_token") or tokenizer.unk_token or tokenizer.eos_token
    tokenizer.pad_token = padding
    side = raw.get("tokenizer_padding_side", "right")
    if side not in ("left", "right"):
        raise UserError(f"{folder}: tokenizer_padding_side: is {side!r}; allowed: 'left' or 'right'")
    tokenizer.padding_side = side
    return tokenizer


def make_processor(tokenizer: PreTrainedTokenizerBase, config: LlavaConfig) -> LlavaProcessor:
    """The processor of a converted model, and the ids of its tokens put into ``config``.

    Rows of the embedding are added if the tokenizer has more tokens than there are: ``vocab_size`` grows.

    Raises:
        UserError: more tokens than the one for images lack rows.
    """
    text = config.text_config
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    highest = max(tokenizer.get_vocab().values())
    if highest > text.vocab_size or (highest == text.vocab_size and image != highest):
        raise UserError(
            f"the tokenizer has ids up to {highest}, but the embedding {text.vocab_size} rows; "
            "--tokenizer names the folder of another"
        )
    text.vocab_size = max(text.vocab_size, highest + 1)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    begin = tokenizer.bos_token_id
    text.bos_token_id, text.eos_token_id, text.pad_token_id = eos if begin is None else begin, eos, pad
    config.image_token_id, config.eos_token_id, config.pad_token_id = image, eos, pad
    vision = config.vision_config
    return build_processor(tokenizer, vision.image_size, vision.patch_size, config.vision_feature_select_strategy)
