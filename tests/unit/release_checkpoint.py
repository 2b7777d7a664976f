"""Miniature checkpoints in the release's key layout, made without any code of `matvlm.convert`, and what they
mean: a hand-assembled forward pass over the same tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PhiConfig,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

HIDDEN, HEADS, DEPTH, ROWS = 32, 2, 4, 320
HEAD_DIM = HIDDEN // HEADS
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "vocab_size": ROWS,
}
TEXT = {
    "phi": (PhiConfig, SIZES | {"rope_theta": 5000.0, "partial_rotary_factor": 0.5, "hidden_act": "gelu_new"}),
    "qwen2": (Qwen2Config, SIZES | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama": (LlamaConfig, SIZES | {"num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
}
TOWER = "vision_tower._vision_tower.vision_model."


@dataclass
class Release:
    """A checkpoint of the release: its folder, and its tensors in the release's names."""

    folder: Path
    tensors: dict[str, Tensor]
    config: dict
    mamba: dict | None = None

    def write(self, folder: Path | None = None, shards: int = 1) -> Path:
        """Write it into a folder, in one file or several, in the order of names."""
        folder = folder or self.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        if self.mamba is not None:
            (folder / "mamba_config.json").write_text(json.dumps(self.mamba))
        write_tokenizer(folder)
        names = sorted(self.tensors)
        if shards == 1:
            save_file(self.tensors, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        mapped = {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            part = names[number::shards]
            save_file({name: self.tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
            mapped |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": mapped}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder


def make_release(
    folder: Path, family: str = "phi", replaced=(), dtype=torch.float32, head: bool = True, bias: bool = False
) -> Release:
    """A checkpoint with random weights; ``replaced`` layers are Mamba-2, ``head``: with SigLIP's pooling head."""
    torch.manual_seed(7)
    kind, sizes = TEXT[family]
    text = AutoModelForCausalLM.from_config(kind(**sizes)).eval()
    vision = SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()
    connector = nn.Sequential(nn.Linear(VISION["hidden_size"], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
    for model in (text, vision, connector):
        for weight in model.parameters():  # also biases, and weights of norms, that would be 0 and 1
            weight.data.add_(torch.randn_like(weight) * 0.1)
    tensors = {f"language_model.{name}": value for name, value in text.state_dict().items()}
    if text.config.tie_word_embeddings:
        del tensors["language_model.lm_head.weight"]
    tensors |= {TOWER + name: value for name, value in vision.state_dict().items()}
    tensors |= {f"connector._connector.{name}": value for name, value in connector.state_dict().items()}
    for index in replaced:
        prefix = f"language_model.model.layers.{index}."
        for name in [name for name in tensors if name.startswith(f"{prefix}self_attn.")]:
            del tensors[name]
        tensors |= {f"{prefix}mamba.{name}": value for name, value in mixer_tensors(bias).items()}
    if not head:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(f"{TOWER}head.")}
    tensors = {name: value.detach().to(dtype).contiguous().clone() for name, value in tensors.items()}
    return Release(
        folder, tensors, release_config(family, sizes), mamba_config(replaced, bias) if replaced else None
    )


def mixer_tensors(bias: bool = False) -> dict[str, Tensor]:
    """A Mamba-2 mixer's tensors, as PAPER.md describes their shapes."""
    wide = 3 * HIDDEN
    shapes = {
        "in_proj.weight": (HIDDEN + wide + HEADS, HIDDEN),
        "conv1d.weight": (wide, 1, 4),
        "conv1d.bias": (wide,),
        "dt_bias": (HEADS,),
        "A_log": (HEADS,),
        "D": (HEADS,),
        "norm.weight": (HIDDEN,),
        "out_proj.weight": (HIDDEN, HIDDEN),
    }
    if bias:
        shapes |= {"in_proj.bias": (HIDDEN + wide + HEADS,), "out_proj.bias": (HIDDEN,)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def release_config(family: str, sizes: dict) -> dict:
    return {
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "auto_map": {"AutoModelForCausalLM": "modeling_tinyllava_phi.TinyLlavaForConditionalGeneration"},
        "model_type": "tinyllava",
        "llm_model_name_or_path": "microsoft/phi-2",
        "tokenizer_name_or_path": "microsoft/phi-2",
        "tokenizer_padding_side": "right",
        "tokenizer_use_fast": False,
        "vision_model_name_or_path": "google/siglip-so400m-patch14-384",
        "connector_type": "mlp2x_gelu",
        "image_aspect_ratio": "square",
        "image_token_index": -200,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "torch_dtype": "float32",
        "text_config": {"model_type": family, **sizes},
        "vision_config": {"model_type": "siglip_vision_model", "model_name_or_path": "google/siglip", **VISION},
    }


def mamba_config(replaced, bias: bool = False) -> dict:
    return {
        "d_model": HIDDEN,
        "ssm_cfg": {"expand": 1, "ngroups": HEADS, "d_state": HEAD_DIM},
        "layer_norm_eps": 1e-5,
        "vocab_size": None,
        "d_inner": HIDDEN,
        "d_xb": HIDDEN,
        "intermediate_size": SIZES["intermediate_size"],
        "hidden_act": "gelu_new",
        "n_layer": DEPTH,
        "attn_layers": [index for index in range(DEPTH) if index not in replaced],
        "resid_pdrop": 0.0,
        "bidirectional": False,
        "is_bias": bias,
    }


def write_tokenizer(folder: Path, rows: int | None = None) -> int:
    """A byte-level tokenizer in the files that Phi-2's slow one has; ``rows`` tokens, or as few as possible.
    Returns how many tokens."""
    words = [*sorted(ByteLevel.alphabet()), "Ġt", "he", "<|endoftext|>"]
    spaces = ["  ", "   "]
    spaces += [f"<filler_{i}>" for i in range((rows or 0) - len(words) - len(spaces))]
    added = {token: len(words) + i for i, token in enumerate(spaces)}
    decoder = {
        str(number): {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "special": False}
        for token, number in added.items()
    }
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CodeGenTokenizer", "added_tokens_decoder": decoder, **names})
    )
    return len(words) + len(added)


class ReferenceMixer(nn.Module):
    """A replaced layer, step by step from its tensors: y = x + mamba(LN x) + mlp(LN x)."""

    def __init__(self, stock: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.norm, self.mlp, self.t = stock.input_layernorm, stock.mlp, tensors

    def forward(self, hidden: Tensor, **_ignored) -> Tensor:
        x = self.norm(hidden)
        return hidden + self.mix(x) + self.mlp(x)

    def mix(self, u: Tensor) -> Tensor:
        t, d = self.t, HIDDEN
        batch, length, _ = u.shape
        rows = u @ t["in_proj.weight"].T + t.get("in_proj.bias", 0)
        z, x, B, C, dt = rows.split([d, d, d, d, HEADS], -1)
        convolved = torch.stack(
            [
                sum(
                    torch.cat([x, B, C], -1)[:, step - 3 + tap] * t["conv1d.weight"][:, 0, tap]
                    for tap in range(4)
                    if step - 3 + tap >= 0
                )
                + t["conv1d.bias"]
                for step in range(length)
            ],
            1,
        )
        x, B, C = (part.view(batch, length, HEADS, HEAD_DIM) for part in F.silu(convolved).split(d, -1))
        dt = F.softplus(dt + t["dt_bias"])
        state, ys = torch.zeros(batch, HEADS, HEAD_DIM, HEAD_DIM), []
        for s in range(length):
            decay = torch.exp(-torch.exp(t["A_log"]) * dt[:, s])[..., None, None]
            state = decay * state + (dt[:, s, :, None] * x[:, s])[..., None] * B[:, s, :, None]
            ys.append((state * C[:, s, :, None]).sum(-1) + t["D"][:, None] * x[:, s])
        gated = torch.stack(ys, 1) * F.silu(z).view(batch, length, HEADS, HEAD_DIM)
        normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + 1e-5)
        return (normed.flatten(-2) * t["norm.weight"]) @ t["out_proj.weight"].T + t.get("out_proj.bias", 0)


@torch.no_grad()
def reference_logits(release: Release, before: Tensor, after: Tensor, pixels: Tensor) -> Tensor:
    """Logits of text, an image and more text: SigLIP layer by layer, two linears, the plain language model.

    Args:
        before, after: token ids (l). pixels: (1, 3, size, size).
    """
    t, config = release.tensors, release.config
    vision = SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()
    own = {name.removeprefix(TOWER): value for name, value in t.items() if name.startswith(TOWER)}
    vision.load_state_dict(vision.state_dict() | own)
    hidden = vision.embeddings(pixels)
    for layer in vision.encoder.layers[: config["vision_feature_layer"] + 1]:
        hidden = layer(hidden, attention_mask=None)
    features = hidden[:, 1:] if config["vision_feature_select_strategy"] == "patch" else hidden
    connector = [t[f"connector._connector.{i}.{kind}"] for i in (0, 2) for kind in ("weight", "bias")]
    image = F.linear(F.gelu(F.linear(features, *connector[:2])), *connector[2:])

    kind, sizes = TEXT[config["text_config"]["model_type"]]
    text = AutoModelForCausalLM.from_config(kind(**sizes)).eval()
    own = {name.removeprefix("language_model."): v for name, v in t.items() if name.startswith("language_model.")}
    text.load_state_dict({name: own.get(name, value) for name, value in text.state_dict().items()})
    for index in range(DEPTH):
        prefix = f"model.layers.{index}.mamba."
        mixer = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
        if mixer:
            text.model.layers[index] = ReferenceMixer(text.model.layers[index], mixer)
    words = text.get_input_embeddings()
    return text(
        inputs_embeds=torch.cat([words(before)[None], image, words(after)[None]], 1), use_cache=False
    ).logits


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, as they are on disk."""
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors
