"""What the hybrid language models share: stock decoder layers, some of which have a Mamba-2 mixer in place of
attention.

``config.layer_types`` says which: ``linear_attention`` is a Mamba-2 layer, ``full_attention`` a stock layer of the
family. The names are those of transformers' own hybrids, so that its caches and masks fit.

Where no layer is attention, nothing in the library's cache counts tokens, and `generate` asks it how many it
holds. The first layer then is ``hybrid``: a Mamba-2 layer whose cache has a place for keys too, in which a mark
of one byte stands for each token.

A family is a module beside this one: its stock classes with these before them, and a Mamba-2 layer wired as its
decoder layer is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_recurrent_attention_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from matvlm.models.mixer import Mamba2Mixer

MAMBA, ATTENTION, COUNTING = "linear_attention", "full_attention", "hybrid"
MASKS = {ATTENTION: create_causal_mask, MAMBA: create_recurrent_attention_mask}
MASK_OF = {ATTENTION: ATTENTION, MAMBA: MAMBA, COUNTING: MAMBA}
"""Which mask a layer reads. `generate` makes both itself for a static cache, under these names."""


# Not a PreTrainedConfig itself: its fields would then override the defaults of the family's.
@dataclass(kw_only=True)
class HybridConfig:
    """What the configuration of a hybrid language model has beside its family's.

    Args:
        layer_types: one of ``linear_attention`` (Mamba-2) and ``full_attention`` for each decoder layer. If none
            is ``full_attention``, the first becomes ``hybrid``.
        mamba_conv_kernel: width of the mixers' causal convolution.
        mamba_chunk_size: steps in a chunk of the scan; changes speed, not results.
        mamba_bias: whether the mixers' projections have biases.
        mamba_init: how the mixers were initialised: ``attention``, ``random`` or ``release-random``.

    Attributes:
        stock_type: ``model_type`` of the family without Mamba-2 layers.
    """

    stock_type: ClassVar[str]

    layer_types: list[str] | None = None
    mamba_conv_kernel: int = 4
    mamba_chunk_size: int = 256
    mamba_bias: bool = False
    mamba_init: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.layer_types is None:
            self.layer_types = [ATTENTION] * self.num_hidden_layers
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types: {len(self.layer_types)} for {self.num_hidden_layers} hidden layers")
        if unknown := sorted(set(self.layer_types) - set(MASK_OF)):
            raise ValueError(f"layer_types: unknown {unknown[0]!r}; allowed: {', '.join(MASK_OF)}")
        if ATTENTION not in self.layer_types:
            self.layer_types = [COUNTING, *self.layer_types[1:]]

    @property
    def mamba_layers(self) -> list[int]:
        """Indices of the Mamba-2 layers, ascending."""
        return [index for index, kind in enumerate(self.layer_types) if kind != ATTENTION]


def head_dim(config: PreTrainedConfig) -> int:
    """Channels of an attention head of a language model."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layer_kinds(config: PreTrainedConfig) -> list[str]:
    """`layer_types` of a language model, which a stock one may not name."""
    return getattr(config, "layer_types", None) or [ATTENTION] * config.num_hidden_layers


def make_mixer(config: HybridConfig, layer_idx: int) -> Mamba2Mixer:
    """A mixer with the dimensions of the family's attention."""
    return Mamba2Mixer(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        head_dim(config),
        layer_idx=layer_idx,
        conv_kernel=config.mamba_conv_kernel,
        chunk_size=config.mamba_chunk_size,
        bias=config.mamba_bias,
    )


class HybridPreTrainedModel:
    """Stands before the family's `PreTrainedModel`."""

    _is_stateful = True  # a recurrent state cannot be cropped, so no assisted generation

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Mamba2Mixer):
            module.reset_scan()


class HybridTextModel:
    """Stands before the family's text model.

    Attributes:
        mamba_layer: class of a replaced decoder layer, made of the configuration and the layer's index.
    """

    mamba_layer: ClassVar[type[nn.Module]]

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        for index in config.mamba_layers:
            self.layers[index] = self.mamba_layer(config, index)
        self.post_init()

    def embedded(self, inputs_embeds: Tensor) -> Tensor:
        """What enters the first layer: (b, l, hidden_size), as given."""
        return inputs_embeds

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        """What leaves the model, of the last layer's output (b, l, hidden_size)."""
        raise NotImplementedError

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """As the family's, with a causal mask for the attention layers and a padding mask for the others."""
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen

        masks = attention_mask
        if not isinstance(masks, dict):
            arguments = {
                "config": self.config,
                "inputs_embeds": inputs_embeds,
                "attention_mask": attention_mask,
                "past_key_values": past_key_values,
                "position_ids": position_ids,
            }
            needed = {MASK_OF[kind] for kind in self.config.layer_types}
            masks = {kind: MASKS[kind](**arguments) for kind in needed}
        if past_key_values is not None and COUNTING in self.config.layer_types:
            marks = torch.ones((*inputs_embeds.shape[:2], 1), dtype=torch.uint8, device=inputs_embeds.device)
            past_key_values.update(marks[:, None], marks[:, None], 0)  # (b, 1, l, 1)

        hidden_states = self.embedded(inputs_embeds)
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for kind, layer in zip(self.config.layer_types, self.layers, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[MASK_OF[kind]],
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        hidden_states = self.final_norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


def register(
    config: type[PreTrainedConfig], model: type[PreTrainedModel], causal_lm: type[PreTrainedModel]
) -> None:
    """Make a family's classes known to transformers' Auto classes."""
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForCausalLM.register(config, causal_lm)
