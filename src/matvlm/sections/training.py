"""How models are trained, and what of the teacher is kept for it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from matvlm.validation import Flag, Fraction, Model, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Beta = Annotated[float, Strict(), Field(ge=0, lt=1)]


class Optimisation(Model):
    """One training run: AdamW under a warm-up-stable-decay schedule; a step is one optimizer step."""

    steps: PositiveInt
    """Optimizer steps."""
    batch_size: PositiveInt
    """Conversations an optimizer step sees, over all devices and accumulation steps."""
    micro_batch_size: PositiveInt
    """Conversations a forward pass sees on one device; divides batch_size."""
    learning_rate: PositiveFloat
    """Rate between warm-up and decay."""
    warmup_steps: NonNegativeInt
    """Steps at the start in which the rate rises from zero on a line."""
    decay_steps: NonNegativeInt
    """Steps at the end in which the rate falls on a cosine."""
    min_learning_rate_ratio: Fraction = 0.0
    """Share of learning_rate that the decay ends at."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's decay of the first and of the second moment."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay, on matrices only."""
    max_grad_norm: PositiveFloat = 1.0
    """Norm that the gradient of all weights together is clipped to."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """tf32: float32 with TensorFloat-32 matrix products on a GPU. bfloat16: autocast over float32 weights; where
    adapters are trained, bfloat16 weights with float32 copies of those that are trained."""
    log_every: PositiveInt = 1
    """Steps between rows of log.csv."""
    validate_every: PositiveInt = 10
    """Steps between validation losses; the last step is always validated."""
    save_every: PositiveInt = 50
    """Steps between resumable checkpoints."""

    @model_validator(mode="after")
    def _consistent(self) -> Optimisation:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}"
            )
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"warmup_steps + decay_steps exceed steps ({self.steps})")
        return self


class Cache(Model):
    """What of the teacher is kept on disk. `online` runs the teacher beside the student instead."""

    mode: Literal["full", "topk", "online"] = "full"
    """full: all logits. topk: the most likely tokens' logits, the mass of the rest and tokens drawn from it.
    online: nothing."""
    top_k: PositiveInt = 64
    """Logits kept of a position where mode is topk."""
    tail_draws: NonNegativeInt = 16
    """Tokens kept of a position that are drawn from those outside the top k; the KL is estimated by them, in a
    first epoch without bias. 0: all tokens outside count as one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of what is kept; the logits of topk are float32 always."""
    shard_size: PositiveInt = 256
    """Conversations in a shard."""
    states: Literal["all", "needed"] = "all"
    """Layers whose states are kept. needed: those that some cell's layer loss compares; a cell with another layout
    needs the cache made again."""
    jobs: PositiveInt = 1
    """Jobs that make it side by side, a share of the shards each."""


class LossWeights(Model):
    """Weight of each loss where a cell uses it."""

    prob: NonNegativeFloat = 1.0
    """Of the divergence between the teacher's and the student's next-token distributions."""
    layer: NonNegativeFloat = 1.0
    """Of the distance between the outputs of replaced layers and the teacher's."""
    ce: NonNegativeFloat = 1.0
    """Of the cross-entropy of answer tokens."""


class Distillation(Optimisation):
    """Optimisation of the student, and its losses."""

    weights: LossWeights = LossWeights()
    """Weight of each loss where a cell uses it."""
    temperature: PositiveFloat = 1.0
    """Divides both models' logits in kl, reverse and jsd."""
    layer_divergence: Literal["l2", "kl"] = "l2"
    """Distance of the layer loss: root mean square difference, or KL of the softmaxes over the width."""
    validation_rows: PositiveInt = 32
    """Conversations of the validation split that the validation losses are measured on, the first ones."""
    reduction: Literal["token", "release"] = "token"
    """token: means over tokens. release: the release's sums and norms (see docs/method.md)."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """tf32: float32 with TensorFloat-32 matrix products on a GPU. bfloat16: bfloat16 weights, with float32 copies
    of those that are trained."""
    gradient_checkpointing: Flag = False
    """Compute a layer's activations a second time in the backward pass instead of keeping them: less memory, about
    a quarter more time. With compile, attention layers keep what is dear for its size."""
    compile: Flag = False
    """Compile attention layers and divergence by torch.compile: faster on a GPU after a minute, slower for few
    steps."""
    deterministic: Flag = False
    """Use only kernels that give the same bits each time: a run that is resumed on a GPU then is the one that was
    not interrupted, bit for bit. Slower; on a CPU it always is so."""
    shard_frozen: Flag = False
    """Share the frozen layers out among the processes of a run (FSDP2), for models that do not fit one GPU; needs
    several processes. Changes memory and speed, not results."""
    shuffle_block: PositiveInt | None = None
    """null: an epoch is a permutation of all rows. Else blocks of so many consecutive rows are permuted, and the
    rows within each: with cache.shard_size, which a cache asks for, one shard is read after another."""
    head_chunk: PositiveInt = 1024
    """Positions whose logits are held at a time; changes memory and speed, not results."""

    @model_validator(mode="after")
    def _compatible(self) -> Distillation:
        if self.shard_frozen and self.compile:
            raise ValueError("compile: true does not go with shard_frozen: true; set one of them to false")
        return self
