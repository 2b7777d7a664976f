"""The entry point `lmms_eval.models`: how lmms-eval finds our model class under the name `matvlm`."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Name and class path; the class itself, and transformers with it, is imported when it is asked for."""
    return ModelManifest(model_id="matvlm", simple_class_path="matvlm.evaluation.model.MatVLM")
