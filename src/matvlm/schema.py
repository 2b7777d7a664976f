"""`python -m matvlm.schema`: the JSON schema of `params.yaml`, and its documentation, from `matvlm.config`.

Both are generated from the same pydantic models that validate the file, so that editors, readers and the
pipeline agree; ``--check`` says whether the files still are what the models say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from matvlm import layouts
from matvlm.config import TRAINING, Config
from matvlm.errors import one_line
from matvlm.files import write_text

SCHEMA = Path("workflow/schemas/params.schema.json")
DOCS = Path("docs/configuration.md")
PRESET = "presets.<name>"
INTRODUCTION = """\
# Configuration

<!-- Written by `python -m matvlm.schema` from src/matvlm/sections/; edit that instead. -->

All of it is in `params.yaml`. Every preset is validated whenever the workflow starts, and
`matvlm check params.yaml` does so alone; an unknown key is an error. Editors that know JSON schema complete and
check the file with `workflow/schemas/params.schema.json`.

Numbers with an exponent need a point in YAML: `1.0e-3`, not `1e-3`, which is text.

A *layout* says which decoder layers are replaced: `even`, `front`, `middle` or `end` with a ratio in per cent, as
`even-25` or `front-12.5`; `release-12.5`, the list of the paper's release for 32 layers; or layer indices from 0,
as `0,4,8`. A ratio r of L layers gives floor(r L + 0.5) layers, at least one.
"""


def make_schema() -> dict:
    """The schema (draft 2020-12) of what `load_config` takes.

    What needs more than one key to judge, such as a ratio that gives no layer at the model's depth, is left to
    `load_config`: it accepts nothing that the schema refuses.
    """
    schema = _plain(Config.model_json_schema())
    definitions = schema["$defs"]
    # A preset names only the axes in which it differs.
    own = json.loads(json.dumps(definitions["Ablation"]))
    own |= {"description": "Axes in which the preset differs; it takes all others from `ablation`."}
    del own["required"]
    for axis in own["properties"].values():
        axis.pop("default", None)
    definitions["PresetAblation"] = own
    preset = definitions["Preset"]
    preset["properties"]["ablation"] = {"$ref": "#/$defs/PresetAblation"}
    for name in (*TRAINING, "profile"):
        preset["properties"][name].pop("default", None)
    is_random = {"properties": {"source": {"const": "random"}}, "required": ["source"]}
    preset["if"] = {"properties": {"teacher": is_random}, "required": ["teacher"]}
    preset["then"] = {"properties": dict.fromkeys(TRAINING, False), "required": ["profile"]}
    preset["else"] = {"required": [name for name in TRAINING if name != "ablation"]}
    # What kind of data it is has to be said, as it decides what the other keys are.
    definitions["EmbeddedData"]["required"].insert(0, "source")
    del definitions["EmbeddedData"]["properties"]["source"]["default"]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "params.yaml of matvlm"}
    return head | schema


def _plain(node: object) -> object:
    """Without pydantic's titles and OpenAPI's discriminators, descriptions on one line."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _plain(value) for key, value in node.items() if key != "discriminator"}
    if isinstance(plain.get("title"), str):
        del plain["title"]
    if isinstance(plain.get("description"), str):
        plain["description"] = " ".join(plain["description"].split())
    return plain


def make_docs(schema: dict) -> str:
    """Markdown with a table of the keys of every mapping in the file."""
    parts, described = [INTRODUCTION], []
    for path, definition in _sections(schema, "", schema):
        if (path, definition) in described:  # a part that several kinds have
            continue
        described.append((path, definition))
        parts.append(f"## {_heading(path, definition)}\n\n{definition['description']}\n")
        rows = [
            f"| `{key}` | {_kind(schema, _join(path, key), value)} | {_default(key, value, definition)} | "
            f"{_meaning(schema, value)} |"
            for key, value in definition["properties"].items()
        ]
        parts.append("\n".join(["| Key | Value | Default | Meaning |", "| --- | --- | --- | --- |", *rows]) + "\n")
    return "\n".join(parts)


def _sections(schema: dict, path: str, definition: dict) -> Iterator[tuple[str, dict]]:
    """Every mapping with its path, in the order of the file; a union gives one section a kind."""
    yield path, definition
    for key, value in definition["properties"].items():
        for inner in _definitions(schema, value):
            yield from _sections(schema, _below(path, key, value), inner)


def _definitions(schema: dict, value: dict) -> list[dict]:
    """The mappings that a value may be, or that its own keys lead to."""
    values = value.get("oneOf") or [*value.get("patternProperties", {}).values()] or [value]
    values = [value["additionalProperties"]] if _is_splits(value) else values
    names = [item["$ref"].rsplit("/", 1)[1] for item in values if "$ref" in item]
    return [schema["$defs"][name] for name in names]


def _is_splits(value: dict) -> bool:
    return isinstance(value.get("additionalProperties"), dict)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _below(path: str, key: str, value: dict) -> str:
    """Path of the section that a key leads to."""
    name = ".<name>" if "patternProperties" in value else ".<split>" if _is_splits(value) else ""
    return _join(path, key) + name


def _heading(path: str, definition: dict) -> str:
    source = definition["properties"].get("source")
    kinds = [source["const"]] if source and "const" in source else source["enum"] if source else []
    if "$comment" in definition:  # a part of one kind alone, where others have their own under the same path
        kinds = [definition["$comment"]]
    return f"`{path or 'params.yaml'}`" + (f" with source {' or '.join(kinds)}" if kinds else "")


def _link(path: str, definition: dict) -> str:
    heading = _heading(path, definition)
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    label = heading.partition(" with ")[2].removeprefix("source ") or heading
    return f"[{label}](#{anchor})"


def _kind(schema: dict, path: str, value: dict) -> str:
    """Type and allowed values in words."""
    if inner := _definitions(schema, value):
        key = path.rpartition(".")[2]
        links = ", or ".join(_link(_below(path.rpartition(".")[0], key, value), item) for item in inner)
        return f"mapping: {links}"
    if "anyOf" in value:
        return ", or ".join(_kind(schema, path, item) for item in value["anyOf"])
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}; each {_kind(schema, path, value['prefixItems'][0])}"
    if value["type"] == "array":
        rules = " of at least one" * ("minItems" in value) + ", none twice" * ("uniqueItems" in value)
        return f"list{rules}; each {_kind(schema, path, value['items'])}"
    if value["type"] == "boolean":
        return "`true`, `false`"
    if value.get("pattern") == layouts.PATTERN:
        return "layout"
    if value.get("format") == "path":
        return "path"
    return {"string": "text"}.get(value["type"], value["type"]) + _range(value)


def _range(value: dict) -> str:
    words = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    return "".join(f" {word} {value[key]:g}" for key, word in words.items() if key in value)


def _default(key: str, value: dict, definition: dict) -> str:
    if key in definition.get("required", []):
        return "required"
    if key in definition.get("else", {}).get("required", []):
        return "required unless `teacher.source` is `random`"
    if key in definition.get("then", {}).get("required", []):
        return "required where `teacher.source` is `random`"
    if "default" not in value:
        return "as in `ablation`"
    default = value["default"]
    if isinstance(default, dict):
        return "its keys' defaults"
    return f"`{default}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


def _meaning(schema: dict, value: dict) -> str:
    if "description" in value:
        return value["description"]
    return _definitions(schema, value)[0]["description"]


def generate() -> dict[Path, str]:
    """What each generated file must hold, by its path in the repository."""
    schema = make_schema()
    return {SCHEMA: json.dumps(schema, indent=2, ensure_ascii=False) + "\n", DOCS: make_docs(schema)}


@one_line
def main(argv: list[str] | None = None) -> int:
    """Write the schema and the documentation of params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m matvlm.schema", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is stale")
    parser.add_argument("--root", type=Path, default=Path("."), help="of the repository")
    args = parser.parse_args(argv)
    stale = []
    for path, text in generate().items():
        target = args.root / path
        if not args.check:
            write_text(target, text)
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            stale.append(str(path))
    if stale:
        print(f"error: {' and '.join(stale)}: stale; run python -m matvlm.schema", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
