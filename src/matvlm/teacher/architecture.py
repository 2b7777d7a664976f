"""An architecture alone: the configuration of a model whose weights nobody needs, for measuring it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matvlm.config import RandomTeacher

if TYPE_CHECKING:
    from transformers import LlavaConfig


def llava_config(settings: RandomTeacher) -> LlavaConfig:
    """Configuration of the teacher that ``settings`` describe, of type `llava_head_bias` if its head has a bias.

    The MLPs' activation is Phi's own, as in a converted checkpoint. Special tokens are the last of the vocabulary.
    """
    from transformers import LlavaConfig

    from matvlm.models.llava import LlavaHeadBiasConfig
    from matvlm.teacher.build import teacher_config

    last = settings.vocab_size - 1
    return teacher_config(
        settings,
        vocab_size=settings.vocab_size,
        token_ids={"image": last, "eos": last - 1, "pad": last - 1},
        activation="gelu_new",
        kind=LlavaHeadBiasConfig if settings.head_bias else LlavaConfig,
    )
