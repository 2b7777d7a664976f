"""The sections of `params.yaml`: data, teacher, training, evaluation, profiling and the ablations' axes.

The text under each field is its documentation: `matvlm.schema` makes docs/configuration.md of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict, StringConstraints, model_validator

from matvlm import layouts
from matvlm.validation import (
    Axis,
    Distinct,
    Flag,
    Fraction,
    Model,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

Layout = Annotated[str, AfterValidator(layouts.canonical), Field(json_schema_extra={"pattern": layouts.PATTERN})]
"""Which layers are replaced, as `matvlm.layouts` reads it, in its one spelling."""
Beta = Annotated[float, Strict(), Field(ge=0, lt=1)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
"""A step of training is seeded with this many bits, and 32 more for the step."""
Init = Literal["attention", "random", "release-random"]
Divergence = Literal["kl", "reverse", "jsd", "ce", "l2"]
LossSet = Literal["prob", "layer", "ce", "prob+layer", "prob+ce", "layer+ce", "prob+layer+ce"]
Split = Literal["train", "distill", "val", "test"]
"""The place of a split in this list goes into the seeds of its scenes: do not reorder."""
SlurmName = Annotated[str, Strict(), StringConstraints(pattern=r"^[^\s-]\S*$")]
SlurmOptions = Annotated[str, Strict(), StringConstraints(pattern=r"^--[a-z][^\x00-\x1f]*$")]
TASKS = ("easy_vqa_yesno", "easy_vqa_open", "sort_of_clevr_nonrelational", "sort_of_clevr_relational")


class SplitSize(Model):
    """Number of images of each source in one split."""

    easy_vqa: NonNegativeInt
    """easy-VQA's images; the package has 4,000 for train, distill and val together, and 1,000 for test."""
    sort_of_clevr: NonNegativeInt
    """Sort-of-CLEVR's scenes, which are drawn."""


class EmbeddedData(Model):
    """The data that needs no download: easy-VQA and Sort-of-CLEVR."""

    source: Literal["embedded"] = "embedded"
    """Kind of data."""
    seed: Seed = 0
    """Seed of the split of easy-VQA, of the scenes and of the order of rows and questions."""
    splits: dict[Split, SplitSize] = Field(json_schema_extra={"required": ["train", "distill", "val", "test"]})
    """Size of each split: train (for the teacher), distill (for the students), val and test, all of them."""
    max_length: PositiveInt = 512
    """Tokens kept of a conversation, image tokens included."""

    @model_validator(mode="after")
    def _splits_fit(self) -> EmbeddedData:
        missing = [name for name in ("train", "distill", "val", "test") if name not in self.splits]
        if missing:
            raise ValueError(f"splits lacks {', '.join(missing)}")
        used = sum(self.splits[name].easy_vqa for name in ("train", "distill", "val"))
        if used > 4000:
            raise ValueError(f"train, distill and val take {used} easy_vqa images; the package has 4000")
        for name in ("distill", "val", "test"):
            if not self.splits[name].easy_vqa + self.splits[name].sort_of_clevr:
                raise ValueError(f"splits.{name} has no images; students are trained and scored on it")
        if self.splits["test"].easy_vqa > 1000:
            raise ValueError("test takes more easy_vqa images than the 1000 of the package")
        return self


class LlavaData(Model):
    """A conversation file in the LLaVA format on disk, as the paper's 665k mix is."""

    source: Literal["llava"]
    """Kind of data."""
    seed: Seed = 0
    """Seed of the draw of the rows held out."""
    conversations: Path
    """JSON file with a list of conversations."""
    images: Path
    """Folder that the images' paths are relative to."""
    val_rows: PositiveInt = 2000
    """Rows held out, by a seeded draw of whole images, to measure validation losses on."""
    max_length: PositiveInt = 1428
    """Tokens kept of a conversation, image tokens included."""


class VisionArchitecture(Model):
    """A SigLIP tower."""

    image_size: PositiveInt
    """Width and height that images are resized to, in pixels."""
    patch_size: PositiveInt
    """Width and height of a patch in pixels; divides image_size."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width within the MLPs."""
    layers: PositiveInt
    """Number of layers."""
    heads: PositiveInt
    """Attention heads; divides hidden_size."""

    @model_validator(mode="after")
    def _divides(self) -> VisionArchitecture:
        if self.image_size % self.patch_size or self.hidden_size % self.heads:
            raise ValueError("patch_size must divide image_size, and heads hidden_size")
        return self


class TextArchitecture(Model):
    """A Phi language model."""

    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt
    """Width within the MLPs."""
    layers: PositiveInt
    """Number of decoder layers, which layouts and ratios refer to."""
    heads: PositiveInt
    """Attention heads; divides hidden_size."""
    kv_heads: PositiveInt
    """Heads of keys and values; divides heads."""
    partial_rotary_factor: Fraction = 0.4
    """Share of each head's channels that is rotated by position."""
    max_position_embeddings: PositiveInt = 2048
    """Longest sequence in tokens that the model says it is made for."""

    @model_validator(mode="after")
    def _divides(self) -> TextArchitecture:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError("heads must divide hidden_size, and kv_heads heads")
        return self


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
    """tf32: float32 with TensorFloat-32 matrix products on a GPU. bfloat16: autocast over float32 weights."""
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


class TeacherTraining(Optimisation):
    """Optimisation of the teacher."""

    seed: Seed = 0
    """Seed of the weights, of the order of rows and of augmentation."""
    easy_vqa_share: Fraction = 0.3
    """Share of each batch drawn from easy-VQA, whose images are few."""
    start: Path | None = None
    """Folder of a teacher of the same architecture whose weights training starts from; none: random weights."""
    compile: Annotated[bool, Strict()] = False
    """Compile the decoder layers by torch.compile: faster on a GPU after half a minute, slower for few steps."""


class EmbeddedTeacher(Model):
    """A LLaVA teacher of our own size: shipped with the repository, or trained by `train_teacher`."""

    source: Literal["shipped", "train"]
    """shipped: take over the weights in path. train: train it by this pipeline."""
    path: Path | None = None
    """Folder of the shipped weights; required where source is shipped."""
    vision: VisionArchitecture
    """The vision tower."""
    text: TextArchitecture
    """The language model."""
    vision_feature_layer: Annotated[int, Strict()] = -2
    """State of the tower that the connector reads: 0 is the embedding, -1 the last layer's output."""
    vision_feature_select_strategy: Literal["full", "default"] = "full"
    """full: all patches. default: all but the first, as the release does."""
    training: TeacherTraining
    """How it is trained, or was."""

    @model_validator(mode="after")
    def _consistent(self) -> EmbeddedTeacher:
        if self.source == "shipped" and self.path is None:
            raise ValueError("path is required when source is shipped")
        states, layer = self.vision.layers + 1, self.vision_feature_layer
        if not -states <= layer < states:
            raise ValueError(f"vision_feature_layer {layer} is out of range; allowed: {-states} to {states - 1}")
        return self

    @property
    def depth(self) -> int:
        """Decoder layers of the language model."""
        return self.text.layers

    @property
    def image_tokens(self) -> int:
        """Image tokens that reach the language model; `default` drops the first patch, as the release does."""
        patches = (self.vision.image_size // self.vision.patch_size) ** 2
        return patches - (self.vision_feature_select_strategy == "default")


class CheckpointTeacher(Model):
    """A teacher that the user has on disk, in the Hugging Face LLaVA format."""

    source: Literal["checkpoint"]
    """Kind of teacher."""
    path: Path
    """Its folder."""
    depth: PositiveInt
    """Decoder layers of its language model."""


class Cache(Model):
    """What of the teacher is kept on disk. `online` runs the teacher beside the student instead."""

    mode: Literal["full", "topk", "online"] = "full"
    """full: all logits. topk: the most likely tokens' logits and the mass of the rest. online: nothing."""
    top_k: PositiveInt = 64
    """Logits kept of a position where mode is topk."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of what is kept; the logits of topk are float32 always."""
    shard_size: PositiveInt = 256
    """Conversations in a shard."""


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
    a quarter more time."""
    compile: Flag = False
    """Compile attention layers and divergence by torch.compile: faster on a GPU after a minute, slower for few
    steps."""
    head_chunk: PositiveInt = 1024
    """Positions whose logits are held at a time; changes memory and speed, not results."""


class Evaluation(Model):
    """Benchmarks, run through lmms-eval."""

    tasks: Axis[str] = TASKS
    """Names of lmms-eval tasks."""
    limit: PositiveInt | None = None
    """Questions of each task; null means all."""
    batch_size: PositiveInt = 64
    """Questions answered at a time."""
    max_new_tokens: PositiveInt = 4
    """Tokens that an answer may have."""


class Profile(Model):
    """Latency, throughput and memory; every point runs in a process of its own."""

    layouts: Distinct[Layout]
    """Students that are measured beside the teacher."""
    prompt_tokens: Axis[PositiveInt]
    """Lengths of the prompt in tokens, image tokens included."""
    generated_tokens: Axis[PositiveInt]
    """Numbers of tokens generated after it."""
    batch_sizes: Axis[PositiveInt] = (1,)
    """Sequences generated at a time."""
    decode_steps: PositiveInt = 64
    """Steps timed at each context length."""
    warmup_steps: NonNegativeInt = 8
    """Steps before those that are timed."""
    repeats: PositiveInt = 3
    """Times that every point is measured, each in a process of its own."""
    threads: PositiveInt = 1
    """CPU threads that torch may use."""

    def problem(self, image_tokens: int, max_positions: int) -> tuple[str, str] | None:
        """The key and what is wrong with it for a model whose image takes ``image_tokens`` and whose sequences are
        at most ``max_positions`` long; none if every point can be measured."""
        prompt, generated = min(self.prompt_tokens), min(self.generated_tokens)
        if prompt <= image_tokens:
            return "prompt_tokens", f"{prompt} leaves no room for text; an image takes {image_tokens}"
        if generated < (steps := self.warmup_steps + self.decode_steps):
            needed = f"warmup_steps + decode_steps ({steps}), which are the last ones generated"
            return "generated_tokens", f"{generated} is less than {needed}"
        prompt, generated = max(self.prompt_tokens), max(self.generated_tokens)
        if prompt + generated > max_positions:
            limit = f"the model's max_position_embeddings ({max_positions})"
            return "generated_tokens", f"{generated} after {prompt} prompt_tokens exceed {limit}"
        return None


class Gpus(Model):
    """GPUs that a job of each step asks a cluster for; 0: none. Without a cluster a step takes one if there is."""

    teacher: NonNegativeInt = 0
    """Training of the teacher; more than one share each batch."""
    cache: Literal[0, 1] = 0
    """The teacher's outputs."""
    distill: NonNegativeInt = 0
    """Training of each student; more than one share each batch."""
    evaluate: Literal[0, 1] = 0
    """Scoring."""
    profile: Literal[0, 1] = 0
    """Measuring."""


class Slurm(Model):
    """Where `--profile slurm` sends jobs. null leaves it to the cluster; `--default-resources` comes first."""

    partition: SlurmName | None = None
    """Partition, or several separated by commas."""
    account: SlurmName | None = None
    """Account that pays."""
    qos: SlurmName | None = None
    """Quality of service."""
    constraint: SlurmName | None = None
    """Features that a node must have, as `a100&ib`."""
    extra: SlurmOptions | None = None
    """Further options of sbatch, as `--reservation=week --exclude=node7`."""

    def resources(self) -> dict[str, str]:
        """What is set, by the name of the resource that carries it."""
        return {f"slurm_{name}": value for name, value in self if value is not None}


class Ablation(Model):
    """The axes of the paper's ablations."""

    losses: Axis[LossSet]
    """Combinations of losses."""
    layouts: Axis[Layout]
    """Placements of the replaced layers."""
    ratios: Axis[PositiveFloat]
    """Shares of layers replaced in per cent, spread evenly."""
    inits: Axis[Init]
    """Initialisations of the mixers."""
    divergences: Axis[Divergence]
    """Divergences of the probability loss."""
    seeds: Axis[Seed]
    """Seeds that every cell is trained with."""
    grid: Flag = False
    """true: every loss combination with every layout; false: one axis at a time around `base`."""


class BaseCell(Model):
    """The cell that every ablation varies one axis of."""

    init: Init = "attention"
    """attention: mixers from the attention they replace. random: mixers random. release-random: norm and MLP of
    the replaced layers random too."""
    layout: Layout = "even-25"
    """Which layers are replaced: even, front, middle or end with a ratio in per cent, release-12.5, or layer
    indices such as 0,4,8."""
    loss: LossSet = "prob+layer+ce"
    """Losses in use."""
    divergence: Divergence = "kl"
    """Divergence of the probability loss: KL from the teacher, the reverse, Jensen-Shannon, cross-entropy on the
    teacher's first choice, or root mean square difference of logits."""
