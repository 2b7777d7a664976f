"""The whole configuration as pydantic models: what `params.yaml` may say, and nothing else.

`load_config` validates every preset at once, so that a mistake in any of them is one line before any job
starts. Rules hand each step only the slice it needs, as JSON, which `parse_settings` reads back. The
sections themselves are in `matvlm.sections`, and all of them can be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError, model_validator

from matvlm import layouts
from matvlm.sections import (
    TASKS,
    Ablation,
    AnswerTraining,
    Architecture,
    BaseCell,
    Cache,
    CheckpointTeacher,
    Distillation,
    Divergence,
    EmbeddedData,
    EmbeddedTeacher,
    Evaluation,
    Gpus,
    Init,
    JoinedTeacher,
    Layout,
    LlamaArchitecture,
    LlavaData,
    Lora,
    LossSet,
    LossWeights,
    Optimisation,
    Profile,
    RandomTeacher,
    Slurm,
    Split,
    SplitSize,
    TeacherTraining,
    TextArchitecture,
    VisionArchitecture,
)
from matvlm.validation import ConfigError, Model, explain, parse_settings, read_yaml, wrong

__all__ = [
    "TASKS",
    "Ablation",
    "AnswerTraining",
    "Architecture",
    "BaseCell",
    "Cache",
    "CheckpointTeacher",
    "Config",
    "ConfigError",
    "Distillation",
    "Divergence",
    "EmbeddedData",
    "EmbeddedTeacher",
    "Evaluation",
    "Gpus",
    "Init",
    "JoinedTeacher",
    "Layout",
    "LlamaArchitecture",
    "LlavaData",
    "Lora",
    "LossSet",
    "LossWeights",
    "Model",
    "Optimisation",
    "Preset",
    "Profile",
    "RandomTeacher",
    "Slurm",
    "Split",
    "SplitSize",
    "TeacherTraining",
    "TextArchitecture",
    "VisionArchitecture",
    "explain",
    "load_config",
    "parse_settings",
    "read_config",
]

TRAINING = ("data", "cache", "distill", "evaluate", "ablation")
"""Sections that a preset has if students are trained, and else has not."""
OPTIONAL = Field(default=None, validate_default=False)
"""A section that some presets have not: None where it is absent, though no value that the file may give it."""
PresetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""A preset's name is the name of folders, too."""


class Preset(Model):
    """One scale at which the paper is reproduced; `teacher`, `profile` and `gpus` alone if the teacher's source is
    random. A preset that trains may do without `profile`: its speed and memory are not measured then."""

    data: Annotated[EmbeddedData | LlavaData, Field(discriminator="source")] = OPTIONAL
    """What is learnt from and asked about."""
    teacher: Annotated[
        EmbeddedTeacher | JoinedTeacher | CheckpointTeacher | RandomTeacher, Field(discriminator="source")
    ]
    """The transformer that is distilled."""
    cache: Cache = OPTIONAL
    """What of the teacher is kept on disk."""
    distill: Distillation = OPTIONAL
    """How students are trained."""
    evaluate: Evaluation = OPTIONAL
    """How models are scored."""
    profile: Profile = OPTIONAL
    """What is measured of speed and memory."""
    gpus: Gpus = Gpus()
    """What its jobs ask a cluster for."""
    ablation: Ablation = OPTIONAL
    """Axes of this preset."""

    @property
    def trains(self) -> bool:
        """Whether students are trained and scored, or only speed and memory are measured."""
        return not isinstance(self.teacher, RandomTeacher)

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_train(cls, data: object) -> object:
        """Before the sections themselves, which need not be right where there is no place for them."""
        if isinstance(data, dict) and _is_random(data.get("teacher")):
            allowed = ", ".join(name for name in cls.model_fields if name not in TRAINING)
            problem = f"a teacher whose source is random is neither trained from nor scored; allowed: {allowed}"
            for name in TRAINING:
                if name in data:
                    raise wrong(name, problem)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Preset:
        """What no step can do is said before the first one runs."""
        if self.profile is not None and isinstance(self.teacher, Architecture):
            image, longest = self.teacher.image_tokens, self.teacher.text.max_position_embeddings
            if found := self.profile.problem(image, longest):
                raise wrong(f"profile.{found[0]}", found[1])
        if self.trains:
            for name in TRAINING:
                if getattr(self, name) is None:
                    raise wrong(name, "Field required; only a teacher whose source is random does without")
            self._check_training()
        elif self.profile is None:
            raise wrong("profile", "Field required; only what is trained does without")
        return self

    def _check_training(self) -> None:
        if isinstance(self.data, EmbeddedData):
            unknown = [task for task in self.evaluate.tasks if task not in TASKS]
            if unknown:
                raise wrong("evaluate.tasks", f"unknown task {unknown[0]!r}; allowed: {', '.join(TASKS)}")
        if isinstance(self.teacher, Architecture) and self.data.max_length <= (image := self.teacher.image_tokens):
            problem = f"{self.data.max_length} leaves no room for text; an image takes {image}"
            raise wrong("data.max_length", problem)
        taught = getattr(self.teacher, "training", None)
        for step, stages in (("distill", (self.distill,)), ("teacher", taught.stages if taught else ())):
            gpus = getattr(self.gpus, step)
            if gpus > (smallest := min((stage.batch_size for stage in stages), default=gpus)):
                raise wrong(f"gpus.{step}", f"{gpus} is more than the batch size, {smallest}")
        if self.distill.reduction == "release" and self.cache.mode != "online":
            problem = "its losses include padding, which no cache holds"
            raise wrong("distill.reduction", f"release needs cache.mode online, not {self.cache.mode}; {problem}")
        block, shard = self.distill.shuffle_block, self.cache.shard_size
        if self.cache.mode != "online" and block not in (None, shard):
            allowed = f"null or cache.shard_size, {shard}, where cache.mode is {self.cache.mode}"
            raise wrong("distill.shuffle_block", f"{block} cannot be read in order; allowed: {allowed}")
        if self.cache.mode == "topk" and self.distill.temperature != 1:
            raise wrong("distill.temperature", "must be 1 where cache.mode is topk")

    def check_cells(self, name: str, base: BaseCell) -> None:
        """Whether every cell, made of the axes of this preset called ``name`` and of ``base``, can be computed.

        Raises:
            PydanticCustomError: naming the key; a layout or ratio that the model's depth does not allow, or a
                divergence that the cache cannot serve.
        """
        depth, key = self.teacher.depth, f"presets.{name}"
        _at("base.layout", layouts.resolve, [base.layout], depth)
        if self.profile is not None:
            _at(f"{key}.profile.layouts", layouts.resolve, self.profile.layouts, depth)
        if not self.trains:
            return
        _at(f"{key}.ablation.ratios", layouts.replaced_count, self.ablation.ratios, depth)
        _at(f"{key}.ablation.layouts", layouts.resolve, self.ablation.layouts, depth)
        if self.cache.mode == "topk" and "l2" in (base.divergence, *self.ablation.divergences):
            raise wrong(f"{key}.cache.mode", "topk cannot serve the divergence l2; allowed: full, online")


class Config(Model):
    """The preset in use, what all presets share, and the presets themselves."""

    preset: str
    """Name of the preset in use; `--config preset=NAME` chooses another one."""
    base: BaseCell = BaseCell()
    """The cell that every ablation varies one axis of."""
    ablation: Ablation
    """Axes for every preset that trains; a preset may narrow any of them under its own `ablation`."""
    slurm: Slurm = Slurm()
    """Where `--profile slurm` sends jobs."""
    presets: dict[PresetName, Preset] = Field(min_length=1, json_schema_extra={"additionalProperties": False})
    """The scales at which the paper is reproduced, by name."""

    @model_validator(mode="before")
    @classmethod
    def _inherit_ablation(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("presets"), dict):
            return data
        shared = data.get("ablation")
        presets = {}
        for name, preset in data["presets"].items():
            if isinstance(preset, dict) and isinstance(shared, dict) and not _is_random(preset.get("teacher")):
                own = preset.get("ablation", {})
                preset = {**preset, "ablation": {**shared, **own} if isinstance(own, dict) else own}
            presets[name] = preset
        return {**data, "presets": presets}

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.preset not in self.presets:
            raise wrong("preset", f"{self.preset!r} is unknown; allowed: {', '.join(self.presets)}")
        for name, preset in self.presets.items():
            preset.check_cells(name, self.base)
        return self

    @property
    def active(self) -> Preset:
        """The preset in use."""
        return self.presets[self.preset]


def _is_random(teacher: object) -> bool:
    return isinstance(teacher, dict) and teacher.get("source") == "random"


def load_config(data: object) -> Config:
    """Validate a whole configuration, as read from `params.yaml`.

    Raises:
        ConfigError: anything wrong in any preset, as one line.
    """
    if not isinstance(data, dict):
        found = "empty" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"is {found}; must be a mapping with the keys {', '.join(Config.model_fields)}")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def read_config(path: Path) -> Config:
    """A whole configuration from its file.

    Raises:
        ConfigError: anything wrong, as one line that starts with the path.
    """
    data = read_yaml(path)
    try:
        return load_config(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _at(key: str, check: Callable[..., object], values: Iterable[object], depth: int) -> None:
    """Run ``check`` on each value and name the key that it objects to."""
    for value in values:
        try:
            check(value, depth)
        except layouts.LayoutError as error:
            raise wrong(key, str(error)) from None
