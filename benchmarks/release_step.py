"""A stand-in for the paper's release: its training step as its published source has it, to measure ours against.

Its models, mixers, attention kernel and optimizer are those that ours has. What differs is:

- teacher and student are two whole models, each with a vision tower that sees every image;
- the teacher gives all its hidden states and, at every position, logits in float32, as the library's models of
  that time did; so does the student;
- L_prob is KL(teacher || student) over all positions, from these logits at once, summed and divided by the batch;
- for L_layer a second pass runs every layer of the student on the teacher's states, attention layers included,
  whose results it throws away; the loss is one norm for each replaced layer;
- L_ce is the mean cross-entropy on the answers of a micro-batch;
- Phi's activation is the library's `gelu_new`, one operation after the other.

Left out is DeepSpeed's offload of optimizer state to the CPU, which would only slow it down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration


class ReleaseStep:
    """See `matvlm.training.loop.Task`.

    Args:
        teacher, student: two whole models on one device, the student's trainable part selected.
        data: has `matvlm.data.dataset.InMemoryDataset`'s `batch`.
    """

    def __init__(
        self,
        teacher: LlavaForConditionalGeneration,
        student: LlavaForConditionalGeneration,
        data: Any,
        gradient_checkpointing: bool,
    ) -> None:
        self.teacher, self.model = teacher.eval().requires_grad_(False), student.train()
        self.data, self.device = data, student.device
        self.layers = student.config.text_config.mamba_layers
        if gradient_checkpointing:
            text = student.model.language_model
            text.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            text.disable_input_require_grads()

    def batch(self, rows: np.ndarray, step: int) -> dict[str, Any]:
        """The rows as a micro-batch."""
        return self.data.batch(rows, self.device)

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        """What losses are divided by: the number of micro-batches."""
        return {"micro_batches": 1.0}

    def losses(self, batch: dict[str, Any], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the loss with weights of one, and of each part."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        with torch.no_grad():
            given = self.teacher(**inputs, output_hidden_states=True, use_cache=False)
            expected = F.softmax(given.logits.float(), dim=-1)
        logits = self.model(**inputs, use_cache=False).logits.float()
        named = {
            "loss_prob": F.kl_div(F.log_softmax(logits, dim=-1), expected, reduction="batchmean"),
            "loss_layer": self._second_pass(given.hidden_states),
            "loss_ce": F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()),
        }
        named = {name: value / counts["micro_batches"] for name, value in named.items()}
        return sum(named.values()), named

    def _second_pass(self, states: tuple[Tensor, ...]) -> Tensor:
        """``states``: (b, l, d) before each layer, and after the final LayerNorm."""
        text: nn.Module = self.model.model.language_model
        positions = torch.arange(states[0].shape[1], device=states[0].device)[None]
        rotary = text.rotary_emb(states[0], position_ids=positions)
        total = torch.zeros((), device=states[0].device)
        for index, layer in enumerate(text.layers):
            output = layer(states[index], attention_mask=None, position_embeddings=rotary)
            if index == len(text.layers) - 1:
                output = text.final_layernorm(output)
            if index in self.layers:
                total = total + (output - states[index + 1]).float().norm()
        return total
