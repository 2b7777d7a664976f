"""From a teacher to an untrained student: some attention layers become Mamba-2 layers.

``attention``: the mixer's x, B, C and output projections are the attention's value, key, query and output
projections; gate, step sizes, convolution, decays and skip keep Mamba-2's own initialisation. Without
softmax, attention is ``o_t = sum_{s <= t} (q_t . k_s) v_s``, which is the state-space model with C = q, B = k,
x = v and no decay (Wang et al. 2024, "The Mamba in the Llama").
``random``: the whole mixer is random; norm, MLP and all else are the teacher's.
``release-random``: norms and MLP of the replaced layers are random too, as the paper's release has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from matvlm import layouts, provenance
from matvlm.errors import UserError, one_line
from matvlm.models import HYBRIDS
from matvlm.models.folder import load_model, save_model
from matvlm.models.hybrid import ATTENTION, MAMBA
from matvlm.models.llava import new_model
from matvlm.models.mixer import Mamba2Mixer
from matvlm.sections import Init

INITS = get_args(Init)


def student_config(teacher: LlavaConfig, layout: str, init: str) -> LlavaConfig:
    """The teacher's configuration with the layers of ``layout`` replaced.

    Raises:
        LayoutError: the layout does not fit the teacher's depth.
        UserError: there are no hybrids of its language model.
    """
    family = teacher.text_config.model_type
    if family not in HYBRIDS:
        raise UserError(f"teacher: its language model is {family!r}; students are made of {', '.join(HYBRIDS)}")
    text = teacher.text_config.to_dict()
    replaced = layouts.resolve(layout, text["num_hidden_layers"])
    for key in ("model_type", "architectures", "layer_types", "transformers_version"):
        text.pop(key, None)
    kinds = [MAMBA if index in replaced else ATTENTION for index in range(text["num_hidden_layers"])]
    config = teacher.to_dict()
    for key in ("model_type", "text_config", "transformers_version"):
        config.pop(key, None)
    hybrid = HYBRIDS[family](**text, layer_types=kinds, mamba_init=init, mamba_chunk_size=64)
    return type(teacher)(**config, text_config=hybrid)


def build_student(
    teacher: LlavaForConditionalGeneration, layout: str, init: str, seed: int
) -> LlavaForConditionalGeneration:
    """A student of ``teacher`` in its dtype, untrained.

    Args:
        layout: as `matvlm.layouts` reads it. init: one of `INITS`. seed: of all that is random.
    """
    config = student_config(teacher.config, layout, init)
    torch.manual_seed(seed)
    student = new_model(config).to(teacher.dtype).eval()
    given = teacher.state_dict()
    state = student.state_dict()
    prefixes = [f"model.language_model.layers.{index}." for index in config.text_config.mamba_layers]
    for key in state:
        replaced = any(key.startswith(prefix) for prefix in prefixes)
        if key in given and not (replaced and init == "release-random"):
            state[key] = given[key]
    student.load_state_dict(state)
    if init == "attention":
        for index in config.text_config.mamba_layers:
            attention = teacher.model.language_model.layers[index].self_attn
            copy_attention(attention.state_dict(), student.model.language_model.layers[index].mamba)
    return student


@torch.no_grad()
def copy_attention(attention: dict[str, Tensor], mixer: Mamba2Mixer) -> None:
    """x <- W_v, B <- W_k, C <- W_q, out_proj <- W_dense; biases too where the mixer has them.

    Args:
        attention: the attention's tensors by name; the output projection is `dense` (Phi) or `o_proj` (Llama).
    """
    output = "dense" if "dense.weight" in attention else "o_proj"
    for kind in ("weight", "bias"):
        into, out = getattr(mixer.in_proj, kind), getattr(mixer.out_proj, kind)
        if into is None or f"q_proj.{kind}" not in attention:
            continue
        _, x, B, C, _ = into.split([mixer.d_inner, mixer.d_xb, mixer.d_xb, mixer.d_inner, mixer.heads])
        x.copy_(attention[f"v_proj.{kind}"])
        B.copy_(attention[f"k_proj.{kind}"])
        C.copy_(attention[f"q_proj.{kind}"])
        out.copy_(attention[f"{output}.{kind}"])


@one_line
def main(argv: list[str] | None = None) -> None:
    """`python -m matvlm.models.initialise`: write an untrained student's folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--layout", required=True)
    parser.add_argument("--init", choices=INITS, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    teacher = load_model(args.teacher)
    student = build_student(teacher, args.layout, args.init, args.seed)
    start = {"init": args.init, "layout": args.layout, "seed": args.seed}
    record = {"step": "init_hybrid", **start, "provenance": provenance.describe(start, teacher=args.teacher)}
    save_model(student, args.out, record, like=args.teacher)


if __name__ == "__main__":
    raise SystemExit(main())
