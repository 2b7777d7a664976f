"""The whole configuration as pydantic models: what `params.yaml` may say, and nothing else.

`load_config` validates every preset at once, so that a mistake in any of them is one line before any job
starts. Rules hand each step only the slice it needs, as JSON, which `parse_settings` reads back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from matvlm import layouts
from matvlm.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]
Init = Literal["attention", "random", "release-random"]
Divergence = Literal["kl", "reverse", "jsd", "ce", "l2"]
LossSet = Literal["prob", "layer", "ce", "prob+layer", "prob+ce", "layer+ce", "prob+layer+ce"]
Split = Literal["train", "distill", "val", "test"]
TASKS = ("easy_vqa_yesno", "easy_vqa_open", "sort_of_clevr_nonrelational", "sort_of_clevr_relational")


class ConfigError(UserError):
    """A configuration that cannot be used; the message is one line naming key and allowed values."""


class Model(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class SplitSize(Model):
    """Number of images of each source in one split; easy-VQA has 4,000 for training and 1,000 for test."""

    easy_vqa: NonNegativeInt
    sort_of_clevr: NonNegativeInt


class EmbeddedData(Model):
    """The data that needs no download: easy-VQA and Sort-of-CLEVR."""

    source: Literal["embedded"] = "embedded"
    seed: NonNegativeInt = 0
    splits: dict[Split, SplitSize]
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
        if self.splits["test"].easy_vqa > 1000:
            raise ValueError("test takes more easy_vqa images than the 1000 of the package")
        return self


class LlavaData(Model):
    """A conversation file in the LLaVA format on disk, as the paper's 665k mix is."""

    source: Literal["llava"]
    seed: NonNegativeInt = 0
    conversations: Path
    images: Path
    val_rows: PositiveInt = 2000
    """Rows held out, by a seeded draw of whole images, to measure validation losses on."""
    max_length: PositiveInt = 1428


class VisionArchitecture(Model):
    """A SigLIP tower."""

    image_size: PositiveInt
    patch_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt

    @model_validator(mode="after")
    def _divides(self) -> VisionArchitecture:
        if self.image_size % self.patch_size or self.hidden_size % self.heads:
            raise ValueError("patch_size must divide image_size, and heads hidden_size")
        return self


class TextArchitecture(Model):
    """A Phi language model."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    partial_rotary_factor: Fraction = 0.4
    max_position_embeddings: PositiveInt = 2048

    @model_validator(mode="after")
    def _divides(self) -> TextArchitecture:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError("heads must divide hidden_size, and kv_heads heads")
        return self


class Optimisation(Model):
    """One training run: AdamW under a warm-up-stable-decay schedule; a step is one optimizer step."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Conversations an optimizer step sees, over all devices and accumulation steps."""
    micro_batch_size: PositiveInt
    """Conversations a forward pass sees on one device; divides batch_size."""
    learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt
    decay_steps: NonNegativeInt
    min_learning_rate_ratio: Fraction = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """tf32: float32 with TensorFloat-32 matrix products on a GPU. bfloat16: autocast over float32 weights."""
    log_every: PositiveInt = 1
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

    seed: NonNegativeInt = 0
    easy_vqa_share: Fraction = 0.3
    """Share of each batch drawn from easy-VQA, whose images are few."""


class EmbeddedTeacher(Model):
    """A LLaVA teacher of our own size: shipped with the repository, or trained by `train_teacher`."""

    source: Literal["shipped", "train"]
    path: Path | None = None
    """Folder of the shipped weights."""
    vision: VisionArchitecture
    text: TextArchitecture
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["full", "default"] = "full"
    training: TeacherTraining

    @model_validator(mode="after")
    def _has_path(self) -> EmbeddedTeacher:
        if self.source == "shipped" and self.path is None:
            raise ValueError("path is required when source is shipped")
        return self

    @property
    def depth(self) -> int:
        """Decoder layers of the language model."""
        return self.text.layers


class CheckpointTeacher(Model):
    """A teacher that the user has on disk, in the Hugging Face LLaVA format."""

    source: Literal["checkpoint"]
    path: Path
    depth: PositiveInt


class Cache(Model):
    """What of the teacher is kept on disk. `online` runs the teacher beside the student instead."""

    mode: Literal["full", "topk", "online"] = "full"
    top_k: PositiveInt = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    shard_size: PositiveInt = 256
    """Conversations in a shard."""


class LossWeights(Model):
    """Weight of each loss where a cell uses it."""

    prob: NonNegativeFloat = 1.0
    layer: NonNegativeFloat = 1.0
    ce: NonNegativeFloat = 1.0


class Distillation(Optimisation):
    """Optimisation of the student, and its losses."""

    weights: LossWeights = LossWeights()
    temperature: PositiveFloat = 1.0
    layer_divergence: Literal["l2", "kl"] = "l2"
    validation_rows: PositiveInt = 32
    """Conversations of the validation split that the validation losses are measured on, the first ones."""
    reduction: Literal["token", "release"] = "token"
    """token: means over tokens. release: the release's sums and norms (see docs/method.md)."""


class Evaluation(Model):
    """Benchmarks, run through lmms-eval."""

    tasks: tuple[str, ...] = TASKS
    limit: PositiveInt | None = None
    """Questions of each task; none means all."""
    batch_size: PositiveInt = 64
    max_new_tokens: PositiveInt = 4


class Profile(Model):
    """Latency, throughput and memory; every point runs in a process of its own."""

    layouts: tuple[str, ...]
    prompt_tokens: tuple[PositiveInt, ...]
    generated_tokens: tuple[PositiveInt, ...]
    batch_sizes: tuple[PositiveInt, ...] = (1,)
    decode_steps: PositiveInt = 64
    """Steps timed at each context length."""
    warmup_steps: NonNegativeInt = 8
    repeats: PositiveInt = 3
    threads: PositiveInt = 1


class Ablation(Model):
    """The axes of the paper's ablations."""

    losses: tuple[LossSet, ...]
    layouts: tuple[str, ...]
    ratios: tuple[PositiveFloat, ...]
    inits: tuple[Init, ...]
    divergences: tuple[Divergence, ...]
    seeds: tuple[NonNegativeInt, ...]
    grid: bool = False
    """true: every loss combination with every layout; false: one axis at a time around `base`."""

    @field_validator("losses", "layouts", "ratios", "inits", "divergences", "seeds")
    @classmethod
    def _distinct(cls, value: tuple) -> tuple:
        if not value:
            raise ValueError("is empty")
        if len(set(value)) != len(value):
            raise ValueError("names a value twice")
        return value


class BaseCell(Model):
    """The cell that every ablation varies one axis of."""

    init: Init = "attention"
    layout: str = "even-25"
    loss: LossSet = "prob+layer+ce"
    divergence: Divergence = "kl"


class Preset(Model):
    """One scale at which the paper is reproduced."""

    data: Annotated[EmbeddedData | LlavaData, Field(discriminator="source")]
    teacher: Annotated[EmbeddedTeacher | CheckpointTeacher, Field()]
    cache: Cache
    distill: Distillation
    evaluate: Evaluation
    profile: Profile
    ablation: Ablation

    def check_layouts(self, base: BaseCell) -> None:
        """Resolve every layout and ratio at this preset's depth.

        Raises:
            LayoutError: a layout or ratio that the depth does not allow.
        """
        depth = self.teacher.depth
        ratios = [f"even-{ratio:g}" for ratio in self.ablation.ratios]
        for layout in (base.layout, *self.ablation.layouts, *ratios, *self.profile.layouts):
            layouts.resolve(layout, depth)


class Config(Model):
    """`params.yaml`."""

    preset: str
    base: BaseCell = BaseCell()
    ablation: Ablation
    """Axes for every preset; a preset may narrow any of them under its own `ablation`."""
    presets: dict[str, Preset]

    @model_validator(mode="before")
    @classmethod
    def _inherit_ablation(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("presets"), dict):
            return data
        shared = data.get("ablation") or {}
        presets = {}
        for name, preset in data["presets"].items():
            if isinstance(preset, dict):
                preset = {**preset, "ablation": {**shared, **(preset.get("ablation") or {})}}
            presets[name] = preset
        return {**data, "presets": presets}

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.preset not in self.presets:
            raise ValueError(f"preset {self.preset!r} is unknown; allowed: {', '.join(self.presets)}")
        for name, preset in self.presets.items():
            try:
                preset.check_layouts(self.base)
            except layouts.LayoutError as error:
                raise ValueError(f"presets.{name}: {error}") from None
        return self

    @property
    def active(self) -> Preset:
        """The preset in use."""
        return self.presets[self.preset]


M = TypeVar("M", bound=BaseModel)


def explain(error: ValidationError, root: str = "") -> str:
    """One line for the first mistakes of a validation error: key, what is wrong, what is allowed."""
    parts = []
    for item in error.errors(include_url=False)[:3]:
        key = ".".join(str(part) for part in (root, *item["loc"]) if str(part) not in ("", "embedded", "llava"))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] not in ("missing", "value_error"):
            message = f"{message}, not {item['input']!r}"
        parts.append(f"{key}: {message}" if key else message)
    return "; ".join(parts)


def load_config(data: dict) -> Config:
    """Validate a whole configuration, as read from `params.yaml`.

    Raises:
        ConfigError: anything wrong in any preset, as one line.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def parse_settings(model: type[M], text: str) -> M:
    """Read the JSON slice of the configuration that a rule hands to its step.

    Raises:
        ConfigError: not JSON, or not valid for ``model``.
    """
    try:
        return model.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"--settings is not JSON: {error}") from None
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
