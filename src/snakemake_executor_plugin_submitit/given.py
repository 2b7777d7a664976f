"""Resources as they were given, where Snakemake's own values hide that: it rounds numbers, and adds disk space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from snakemake.resources import Resource

from .resources import ResourceError


class Exact(Resource):
    """A resource that also keeps its value as it was before it was rounded."""

    def __init__(self, name: str, value: Any, raw: int | str | None = None) -> None:
        super().__init__(name, value, raw)
        self.exact = value


def check_given(job: Any) -> None:
    """Refuse fractions of GPUs, and disk space that somebody asks for: neither would reach Slurm.

    Raises:
        ResourceError: it names the resource and its value.
    """
    for one in job.jobs if job.is_group() else [job]:
        if complaint := _fraction(one) or _disk(one):
            raise ResourceError(complaint)


def _fraction(job: Any) -> str | None:
    for name in ("gpus", "gpu"):
        # What Snakemake has rounded is a whole number; whatever else it may be, others complain of it.
        if not isinstance(job.resources.get(name), int):
            continue
        value = _exact(job, name)
        if isinstance(value, float) and not value.is_integer():
            return f"{name}={value}: a number of whole GPUs is needed"
    return None


def _exact(job: Any, name: str) -> Any:
    """A resource's value before it is rounded: of what was evaluated, or else what the rule's text says."""
    rule, workflow = job.rule, job.rule.workflow
    if evaluator := _evaluator(rule.resources.get(name)):
        value, _ = rule.apply_input_function(
            Exact(name, evaluator).evaluate,
            job.wildcards_dict,
            input=job.input,
            attempt=job.attempt,
            incomplete_checkpoint_func=lambda error: None,
            raw_exceptions=True,
            rulename=rule.name,
            async_run=workflow.async_run,
            threads=job.threads,
        )
        return getattr(value, "exact", None)
    # On the command line only whole numbers are not evaluated.
    if name in workflow.resource_settings._parsed_overwrite_resources.get(rule.name, {}):
        return None
    declared = getattr(rule.ruleinfo, "resources", None)
    return declared[1].get(name) if declared else None


def _disk(job: Any) -> str | None:
    """Complain of disk space, in whatever unit, that is not Snakemake's own default for remote jobs."""
    rule, workflow = job.rule, job.rule.workflow
    value = job.resources.get("disk_mb")
    if value is None or "disk_mb" in workflow.global_resources:
        return None
    evaluator = _evaluator(rule.resources.get("disk_mb"))
    default = workflow.resource_settings._parsed_default_resources.get("disk_mb")
    # Its own default is evaluated, and has no text, which --default-resources would have.
    if evaluator is not None and evaluator is _evaluator(default) and default.raw is None:
        return None
    return f"disk_mb={value}: no disk space is asked of Slurm by it; use slurm_extra, as '--tmp={value}M'"


def _evaluator(resource: Resource) -> Callable[..., Any] | None:
    return resource._evaluator
