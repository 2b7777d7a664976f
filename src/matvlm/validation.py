"""What all settings have in common: strict types, and one readable line for whatever is wrong with them.

A number is a number in YAML too, not a text that looks like one, nor true or false. So what is accepted
here is what the JSON schema accepts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from matvlm.errors import UserError

T = TypeVar("T")
SHOWN = 60
"""Characters of a wrong value that a message shows."""


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"names {value} twice")
    return values


PositiveInt = Annotated[int, Strict(), Field(gt=0)]
NonNegativeInt = Annotated[int, Strict(), Field(ge=0)]
PositiveFloat = Annotated[float, Strict(), Field(gt=0)]
NonNegativeFloat = Annotated[float, Strict(), Field(ge=0)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1)]
Flag = Annotated[bool, Strict()]
_UNIQUE = AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})
Distinct = Annotated[tuple[T, ...], *_UNIQUE]
"""Values of which none comes twice."""
Axis = Annotated[tuple[T, ...], Field(min_length=1), *_UNIQUE]
"""Distinct values, at least one."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message is one line naming key and allowed values."""


class Model(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_key(cls, data: object) -> object:
        """Pydantic's own message for an unknown key does not say which keys there are."""
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise wrong(str(key), f"unknown key; allowed: {', '.join(cls.model_fields)}")
        return data


M = TypeVar("M", bound=BaseModel)


def wrong(key: str, message: str) -> PydanticCustomError:
    """What a validator raises about ``key`` below the model that it validates."""
    return PydanticCustomError("wrong", "{message}", {"key": key, "message": message})


def explain(error: ValidationError) -> str:
    """One line for the first mistakes of a validation error: key, what is wrong, what is allowed."""
    return " ".join("; ".join([*_mistakes(error)][:3]).split())


def _mistakes(error: ValidationError) -> Iterator[str]:
    """Each mistake once: not what follows from another one, nor again where presets inherit it."""
    reported: set[tuple] = set()
    for item in error.errors(include_url=False):
        place, text = _describe(_place(item["loc"]), item)
        inherited = place[2:] if place[:1] == ("presets",) else ()
        keys = [key for key in (place, inherited) if key]
        if inherited in reported or any(_related(key, other) for key in keys for other in reported):
            continue
        reported.add(place)
        yield f"{'.'.join(map(str, place))}: {text}" if place else text


def _related(one: tuple, other: tuple) -> bool:
    """Whether one key is above the other."""
    length = min(len(one), len(other))
    return 0 < length < max(len(one), len(other)) and one[:length] == other[:length]


def _describe(place: tuple, item: dict[str, Any]) -> tuple[tuple, str]:
    """The key that is wrong, and what is wrong with it."""
    kind, context = item["type"], item.get("ctx", {})
    message = item["msg"].removeprefix("Value error, ").replace("Tuple", "List").replace("valid tuple", "list")
    if kind == "wrong":
        return (*place, context["key"]), message
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        place = (*place, context["discriminator"].strip("'"))
        allowed = context.get("expected_tags", "").replace(", ", " or ")
        return place, f"Input should be {allowed}, not {context['tag']!r}" if allowed else "Field required"
    if kind in ("model_type", "dict_type"):
        return place, f"must be a mapping of keys to values, not {_shown(item['input'])}"
    if kind == "too_short":
        return place, "is empty"
    if kind in ("missing", "value_error", "too_long"):
        return place, message
    return place, f"{message}, not {_shown(item['input'])}{_hint(item)}"


def _place(location: tuple) -> tuple:
    """The keys that lead to a value, without what pydantic adds: a union's tag, which follows the union's own
    key, and the mark of a mapping's key."""
    return tuple(
        part
        for before, part in zip(("", *location), location, strict=False)
        if part != "[key]" and (before, part) not in UNION_TAGS
    )


UNION_TAGS = {
    *(("data", tag) for tag in ("embedded", "llava")),
    *(("teacher", tag) for tag in ("shipped", "train", "checkpoint", "random")),
}
"""Keys whose values are one of several models, and the values of ``source`` that tell which."""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _hint(item: dict[str, Any]) -> str:
    if item["type"] in ("float_type", "int_type") and isinstance(item["input"], str):
        return " (YAML reads numbers in quotes as text, and those like 1e-3 too: write 1.0e-3)"
    return ""


def parse_settings(model: type[M], text: str, option: str = "--settings") -> M:
    """Read the JSON slice of the configuration that a rule hands to its step.

    Raises:
        ConfigError: not JSON, or not valid for ``model``.
    """
    try:
        return model.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{option} is not JSON: {error}") from None
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def read_yaml(path: Path) -> object:
    """What a YAML file holds.

    Raises:
        ConfigError: the file is missing, or not YAML in UTF-8.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}: not YAML: {' '.join(reason.split())}{where}") from None
