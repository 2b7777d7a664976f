"""The sections of `params.yaml`: data, teacher, training, evaluation, profiling and the ablations' axes.

The text under each field is its documentation: `matvlm.schema` makes docs/configuration.md of it.
"""

from matvlm.sections.ablation import Ablation, BaseCell, Divergence, Init, Layout, LossSet
from matvlm.sections.cluster import Gpus, Slurm
from matvlm.sections.data import EmbeddedData, LlavaData, Split, SplitSize
from matvlm.sections.measuring import TASKS, Evaluation, Profile
from matvlm.sections.teacher import (
    AnswerTraining,
    Architecture,
    CheckpointTeacher,
    EmbeddedTeacher,
    JoinedTeacher,
    LlamaArchitecture,
    Lora,
    RandomTeacher,
    TeacherTraining,
    TextArchitecture,
    VisionArchitecture,
)
from matvlm.sections.training import Cache, Distillation, LossWeights, Optimisation

__all__ = [
    "TASKS",
    "Ablation",
    "AnswerTraining",
    "Architecture",
    "BaseCell",
    "Cache",
    "CheckpointTeacher",
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
    "Optimisation",
    "Profile",
    "RandomTeacher",
    "Slurm",
    "Split",
    "SplitSize",
    "TeacherTraining",
    "TextArchitecture",
    "VisionArchitecture",
]
