"""`python -m matvlm.data.tokenizer`: a tokenizer whose tokens are the words of the embedded data."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from matvlm.data import easy_vqa, sort_of_clevr
from matvlm.data.conversations import IMAGE
from matvlm.data.render import ASSISTANT, SYSTEM, USER
from matvlm.errors import one_line
from matvlm.files import written_aside

EOS, PAD, UNKNOWN = "<|endoftext|>", "<pad>", "<unk>"
SPECIAL = (EOS, PAD, UNKNOWN, IMAGE)
_WORD = re.compile(r"\w+|[^\w\s]")


def vocabulary() -> list[str]:
    """All tokens, in the order of their ids: special ones, roles, the words that the data's generators know
    (whatever the sizes of the splits), and fillers up to a multiple of 8."""
    sentences = [SYSTEM, *sort_of_clevr.sentences(), *easy_vqa.sentences()]
    words = sorted({word for sentence in sentences for word in _WORD.findall(sentence.lower())})
    tokens = [*SPECIAL, USER, ASSISTANT, *words]
    return tokens + [f"<filler_{i}>" for i in range(-len(tokens) % 8)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer; `USER:` and `ASSISTANT:` are one token each, all else is lower-cased."""
    tokens = vocabulary()
    model = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    model.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # joins by spaces, none before , . ?
    model.add_tokens([AddedToken(role, normalized=False) for role in (USER, ASSISTANT)])
    # The names under which LlavaProcessor looks for the image token are kept with the tokenizer.
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


@one_line
def main(argv: list[str] | None = None) -> None:
    """Write the tokenizer of the embedded data's words."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", required=True, type=Path)
    with written_aside(parser.parse_args(argv).out) as aside:
        build_tokenizer().save_pretrained(aside)


if __name__ == "__main__":
    raise SystemExit(main())
