"""Decoding at the speed of memory: a step of a Phi model or hybrid as about four kernels a layer in a CUDA graph.

transformers' own loop generates; only its forward pass of a single position is replaced, while
`FusedDecoder.active` holds. What a step must read are the weights of the language model and its cache, and little
else is read or written.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from matvlm.models.filled_cache import filled_cache
from matvlm.models.hybrid import head_dim
from matvlm.models.hybrid_phi import HybridPhiMambaLayer
from matvlm.ops.choose import MAMBA_SSM, kernel_path
from matvlm.ops.decode import MAX_BATCH

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function
MODEL_TYPES = ("phi", "hybrid_phi")


def unsupported(model: LlavaForConditionalGeneration, batch: int) -> str | None:
    """Why a model cannot be decoded here; none if it can."""
    text = model.config.text_config
    if model.device.type != "cuda":
        return "needs a GPU"
    if text.model_type not in MODEL_TYPES:
        return f"language model {text.model_type}; supported: {', '.join(MODEL_TYPES)}"
    if text.hidden_act not in ACTIVATIONS or text.qk_layernorm:
        return f"activation {text.hidden_act} or normalised queries; supported: {ACTIVATIONS[0]} without"
    if batch > MAX_BATCH:
        return f"{batch} sequences; at most {MAX_BATCH}"
    if kernel_path(model.device) != MAMBA_SSM:
        return "the kernels of mamba-ssm are not in use (docs/gpu.md)"
    try:
        from matvlm.ops.decode import attention  # noqa: F401
    except ImportError as error:
        return f"triton: {error}"
    return None


class FusedDecoder:
    """Steps of one model, for ``batch`` sequences of at most ``capacity`` tokens, one generation after the other.

    Attributes:
        cache: what the prompt pass must fill, and steps continue.
        token: (b,) the last tokens; a step sets it to the likeliest next ones.
        logits: (b, v) float32 of the last step.
    """

    def __init__(self, model: LlavaForConditionalGeneration, batch: int, capacity: int) -> None:
        from matvlm.ops.decode.attention import Workspace

        if problem := unsupported(model, batch):
            raise ValueError(f"fused decoding: {problem}")
        self.model, self.batch, self.capacity = model, batch, capacity
        self.text = model.model.language_model
        text, device = model.config.text_config, model.device
        self.cache = filled_cache(text, capacity)
        self.token = torch.zeros(batch, dtype=torch.long, device=device)
        self.position = torch.zeros((), dtype=torch.long, device=device)
        self.begins = torch.zeros(batch, dtype=torch.long, device=device)
        self.logits = torch.empty(batch, text.vocab_size, device=device)
        width = head_dim(text)
        inner, kv = text.num_attention_heads * width, text.num_key_value_heads * width
        self._stream = torch.empty(batch, text.hidden_size, device=device)
        self._normed = torch.empty_like(self._stream, dtype=model.dtype)
        wide = 2 * inner + 2 * kv + text.num_attention_heads
        self._projected = torch.empty(batch, wide, device=device, dtype=model.dtype)
        self._mixed = torch.empty(batch, inner + text.intermediate_size, device=device, dtype=model.dtype)
        self._workspace = Workspace(batch, text.num_attention_heads, width, capacity, device)
        positions = torch.arange(capacity, device=device)[None]
        self._rotary = tuple(
            part[0].contiguous() for part in self.text.rotary_emb(self._stream, position_ids=positions)
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._lock = Lock()
        self._length = 0

    @property
    def busy(self) -> bool:
        """Whether a generation has it."""
        return self._lock.locked()

    def reset(self) -> None:
        """Begin anew, with an empty cache."""
        self.cache.reset()

    @torch.no_grad()
    def step(self) -> None:
        """Enter `token` into the cache, and find what follows it. Returns before the GPU is done.

        Raises:
            ValueError: the capacity is used up.
        """
        length = self.cache.get_seq_length()
        if length >= self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens and is full")
        if length != self._length:  # the graph counts by itself
            self.position.fill_(length)
        if self._graph is None:
            self._capture()
        self._graph.replay()
        self._length = length + 1
        for layer in self.cache.layers:
            if hasattr(layer, "length"):
                layer.length = self._length

    @contextmanager
    def active(self) -> Iterator[None]:
        """While it lasts, the model's passes of single positions over `cache` are steps of this decoder.

        Raises:
            RuntimeError: another generation has it.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this decoder is in use; generations that overlap need one each")
        plain = self.model.forward

        @functools.wraps(plain)
        def forward(input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs):
            ours = kwargs.get("past_key_values") is self.cache
            if ours and input_ids is not None and input_ids.shape[1] == 1 and self.cache.get_seq_length():
                self.token.copy_(input_ids[:, 0])
                self.step()
                return LlavaCausalLMOutputWithPast(logits=self.logits[:, None], past_key_values=self.cache)
            if ours:
                self.begin(attention_mask)
            return plain(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

        self.model.forward = forward
        try:
            yield
        finally:
            del self.model.forward
            self._lock.release()

    def begin(self, attention_mask: Tensor | None) -> None:
        """Note where the sequences of a prompt begin: attention_mask (b, l) with padding on the left, or none."""
        if attention_mask is None:
            self.begins.zero_()
        else:
            self.begins.copy_((attention_mask.cumsum(-1) == 0).sum(-1))

    def _capture(self) -> None:
        """Record the step. Nothing runs while it is recorded, but kernels must have been compiled before, by a
        step whose traces in the states are wiped out; what it enters elsewhere the next one overwrites."""
        linear = [layer for layer in self.cache.layers if hasattr(layer, "recurrent_states")]
        states = [held[0] for layer in linear for held in (layer.conv_states, layer.recurrent_states)]
        kept = [state.clone() for state in states]
        token, position = self.token.clone(), self.position.clone()
        stream = torch.cuda.Stream(self.model.device)
        stream.wait_stream(torch.cuda.current_stream(self.model.device))
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream(self.model.device).wait_stream(stream)
        for state, value in zip((*states, self.token, self.position), (*kept, token, position), strict=True):
            state.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):  # its default is one of the first GPU that was captured on
            self._step()
        self._graph = graph

    def _step(self) -> None:
        from matvlm.ops.decode.attention import attend
        from matvlm.ops.decode.linear import from_stream, norm, to_stream
        from matvlm.ops.decode.mamba import mix_step

        stream, normed, projected, mixed = self._stream, self._normed, self._projected, self._mixed
        stream.copy_(self.model.get_input_embeddings().weight.index_select(0, self.token))
        for layer, held in zip(self.text.layers, self.cache.layers, strict=True):
            mlp = layer.mlp
            norm(stream, layer.input_layernorm, normed)
            if isinstance(layer, HybridPhiMambaLayer):
                mixer = layer.mamba
                from_stream(normed, [mixer.in_proj], projected, mlp.fc1, mixed)
                mix_step(mixer, projected, held.conv_states[0], held.recurrent_states[0], mixed)
                to_stream(mixed, mixer.out_proj, mlp.fc2, stream)
            else:
                attention = layer.self_attn
                linears = [attention.q_proj, attention.k_proj, attention.v_proj]
                from_stream(normed, linears, projected, mlp.fc1, mixed)
                attend(
                    projected,
                    held.keys,
                    held.values,
                    self._rotary,
                    self.begins,
                    self.position,
                    mixed,
                    self._workspace,
                )
                to_stream(mixed, attention.dense, mlp.fc2, stream)
        norm(stream, self.text.final_layernorm, normed)
        from_stream(normed, [self.model.lm_head], self.logits)
        torch.argmax(self.logits, dim=-1, out=self.token)
        self.position += 1
