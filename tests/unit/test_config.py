"""Whatever is wrong with a configuration is one line that names the key and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from matvlm.config import (
    TRAINING,
    Cache,
    ConfigError,
    Distillation,
    EmbeddedTeacher,
    Preset,
    RandomTeacher,
    load_config,
    parse_settings,
    read_config,
)

ROOT = Path(__file__).parents[2]
TINY = "presets.tiny"
DROP = object()


PRESET = """
data:
  source: embedded
  splits:
    train: {easy_vqa: 3750, sort_of_clevr: 8}
    distill: {easy_vqa: 100, sort_of_clevr: 4}
    val: {easy_vqa: 100, sort_of_clevr: 2}
    test: {easy_vqa: 4, sort_of_clevr: 4}
teacher:
  source: shipped
  path: models/tiny-teacher
  vision: {image_size: 64, patch_size: 8, hidden_size: 128, intermediate_size: 256, layers: 5, heads: 4}
  text: {hidden_size: 96, intermediate_size: 256, layers: 16, heads: 3, kv_heads: 3}
  training: &training
    {steps: 40, batch_size: 8, micro_batch_size: 8, learning_rate: 0.004, warmup_steps: 4, decay_steps: 12}
cache: {mode: full}
distill: *training
evaluate: {limit: 250}
profile: {layouts: [even-25], prompt_tokens: [128], generated_tokens: [128, 512]}
"""
CONFIG = """
preset: tiny
base: {init: attention, layout: even-25, loss: prob+layer+ce, divergence: kl}
ablation:
  losses: [prob, layer, ce, prob+layer+ce]
  layouts: [even-25, front-25]
  ratios: [12.5, 25, 50]
  inits: [attention, random]
  divergences: [kl, l2]
  seeds: [0, 1, 2]
"""


@pytest.fixture
def raw() -> dict:
    return yaml.safe_load(CONFIG) | {"presets": {name: yaml.safe_load(PRESET) for name in ("tiny", "debug")}}


def changed(raw: dict, key: str, value: object) -> dict:
    """A copy with one value changed; dots lead to it."""
    data = json.loads(json.dumps(raw))  # a deep copy that shares nothing within itself either
    inner = data
    *way, last = key.split(".")
    for name in way:
        inner = inner[name]
    if value is DROP:
        del inner[last]
    else:
        inner[last] = value
    return data


def message(data: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(data)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


# key, value, where the message starts, words it must have
BAD = [
    ("preset", "large", "preset:", ["'large'", "tiny", "debug"]),
    ("preset", DROP, "preset:", ["required"]),
    ("preset", ["tiny"], "preset:", ["string", "['tiny']"]),
    ("presett", "tiny", "presett:", ["unknown key", "preset, base, ablation, slurm, presets"]),
    ("base.layot", "even-25", "base.layot:", ["unknown key", "layout"]),
    ("ablation.loses", ["ce"], "ablation.loses:", ["unknown key", "losses"]),
    (f"{TINY}.cash", {}, f"{TINY}.cash:", ["unknown key", "cache"]),
    (f"{TINY}.data.split", {}, f"{TINY}.data.split:", ["unknown key", "splits"]),
    (f"{TINY}.teacher.text.depth", 3, f"{TINY}.teacher.text.depth:", ["unknown key", "layers"]),
    (f"{TINY}.teacher.training.step", 3, f"{TINY}.teacher.training.step:", ["unknown key", "steps"]),
    (f"{TINY}.distill.weights", {"kl": 1}, f"{TINY}.distill.weights.kl:", ["unknown key", "prob, layer, ce"]),
    (f"{TINY}.ablation", {"seed": [0]}, f"{TINY}.ablation.seed:", ["unknown key", "seeds"]),
    ("slurm", {"partion": "gpu"}, "slurm.partion:", ["unknown key", "partition, account, qos"]),
    ("slurm", {"partition": "gpu nodes"}, "slurm.partition:", ["'gpu nodes'"]),
    ("slurm", {"account": 7}, "slurm.account:", ["string", "7"]),
    ("slurm", {"extra": "-p gpu"}, "slurm.extra:", ["'-p gpu'"]),
    ("slurm", {"extra": "--exclude=n1\n#SBATCH --wrap=x"}, "slurm.extra:", ["--exclude"]),
    (f"{TINY}.gpus", {"distil": 1}, f"{TINY}.gpus.distil:", ["unknown key", "distill"]),
    (f"{TINY}.gpus", {"distill": -1}, f"{TINY}.gpus.distill:", ["greater than or equal to 0", "-1"]),
    (f"{TINY}.gpus", {"distill": 0.5}, f"{TINY}.gpus.distill:", ["integer", "0.5"]),
    (f"{TINY}.gpus", {"profile": 2}, f"{TINY}.gpus.profile:", ["0 or 1", "2"]),
    (f"{TINY}.gpus", {"teacher": 9}, f"{TINY}.gpus.teacher:", ["9 is more than the batch size, 8"]),
    ("ablation.losses", ["prob", "kd"], "ablation.losses.1:", ["'prob+layer+ce'", "'kd'"]),
    ("base.loss", "ce+prob", "base.loss:", ["'prob+ce'", "'ce+prob'"]),
    ("ablation.divergences", ["hellinger"], "ablation.divergences.0:", ["'reverse'", "'hellinger'"]),
    ("ablation.inits", ["zero"], "ablation.inits.0:", ["'attention'", "'release-random'", "'zero'"]),
    ("ablation.layouts", ["odd-25"], "ablation.layouts.0:", ["'odd-25'", "even-<per cent>", "0,4,8"]),
    ("ablation.layouts", ["even-25 "], "ablation.layouts.0:", ["'even-25 '"]),
    ("base.layout", "even", "base.layout:", ["'even'", "release-12.5"]),
    ("base.layout", "0,16", "base.layout:", ["layer 16", "0 to 15"]),
    ("base.layout", "3,3", "base.layout:", ["twice"]),
    (f"{TINY}.profile.layouts", ["end-120"], f"{TINY}.profile.layouts:", ["120", "up to 100"]),
    (f"{TINY}.ablation", {"layouts": ["release-12.5"]}, f"{TINY}.ablation.layouts:", ["32 layers", "has 16"]),
    (f"{TINY}.ablation", {"ratios": [25, 0.1]}, f"{TINY}.ablation.ratios:", ["0.1 %", "no layer"]),
    (f"{TINY}.ablation", {"ratios": [150]}, f"{TINY}.ablation.ratios:", ["150 %", "100"]),
    ("ablation.ratios", [0], "ablation.ratios.0:", ["greater than 0"]),
    ("ablation.ratios", [float("nan")], "ablation.ratios.0:", ["finite", "nan"]),
    ("ablation.ratios", [25, 25.0], "ablation.ratios:", ["25.0 twice"]),
    ("ablation.layouts", ["even-25", "even-25.0"], "ablation.layouts:", ["even-25 twice"]),
    ("ablation.seeds", [0, 1, 0], "ablation.seeds:", ["0 twice"]),
    ("ablation.seeds", [], "ablation.seeds:", ["is empty"]),
    ("ablation.seeds", [2**31], "ablation.seeds.0:", ["less than 2147483648"]),
    ("ablation.seeds", [-1], "ablation.seeds.0:", ["greater than or equal to 0"]),
    ("ablation.seeds", [True], "ablation.seeds.0:", ["integer", "True"]),
    ("ablation.seeds", 0, "ablation.seeds:", ["list", "not 0"]),
    ("ablation.grid", "yes", "ablation.grid:", ["boolean", "'yes'"]),
    ("ablation", None, "ablation:", ["mapping", "None"]),
    (f"{TINY}.ablation", None, f"{TINY}.ablation:", ["mapping", "None"]),
    (f"{TINY}.ablation", ["ce"], f"{TINY}.ablation:", ["mapping", "['ce']"]),
    (f"{TINY}.distill.steps", 0, f"{TINY}.distill.steps:", ["greater than 0", "not 0"]),
    (f"{TINY}.distill.steps", "40", f"{TINY}.distill.steps:", ["integer", "'40'", "in quotes"]),
    (f"{TINY}.distill.steps", 40.5, f"{TINY}.distill.steps:", ["integer", "40.5"]),
    (f"{TINY}.distill.learning_rate", "1e-3", f"{TINY}.distill.learning_rate:", ["number", "write 1.0e-3"]),
    (f"{TINY}.distill.learning_rate", float("inf"), f"{TINY}.distill.learning_rate:", ["finite", "inf"]),
    (f"{TINY}.distill.betas", [0.9, 1.0], f"{TINY}.distill.betas.1:", ["less than 1"]),
    (f"{TINY}.distill.betas", [0.9, 0.9, 0.9], f"{TINY}.distill.betas:", ["at most 2"]),
    (f"{TINY}.distill.micro_batch_size", 3, f"{TINY}.distill:", ["3 does not divide batch_size 8"]),
    (f"{TINY}.distill.warmup_steps", 39, f"{TINY}.distill:", ["warmup_steps + decay_steps", "40"]),
    (f"{TINY}.distill.reduction", "release", f"{TINY}.distill.reduction:", ["cache.mode online", "full"]),
    (f"{TINY}.distill.precision", "fp16", f"{TINY}.distill.precision:", ["'bfloat16'", "'fp16'"]),
    (f"{TINY}.cache.mode", "topk", f"{TINY}.cache.mode:", ["l2", "online"]),
    (f"{TINY}.cache.mode", "disk", f"{TINY}.cache.mode:", ["'topk'", "'disk'"]),
    (f"{TINY}.cache.jobs", 0, f"{TINY}.cache.jobs:", ["greater than 0"]),
    (f"{TINY}.cache.states", "some", f"{TINY}.cache.states:", ["'needed'", "'some'"]),
    (
        f"{TINY}.distill.shuffle_block",
        64,
        f"{TINY}.distill.shuffle_block:",
        ["64", "null or cache.shard_size, 256"],
    ),
    (f"{TINY}.evaluate.tasks", ["pope"], f"{TINY}.evaluate.tasks:", ["'pope'", "easy_vqa_open"]),
    (f"{TINY}.evaluate.tasks", [], f"{TINY}.evaluate.tasks:", ["is empty"]),
    (f"{TINY}.evaluate.tasks", ["easy_vqa_open"] * 2, f"{TINY}.evaluate.tasks:", ["easy_vqa_open twice"]),
    (f"{TINY}.data.max_length", 64, f"{TINY}.data.max_length:", ["64 leaves no room", "an image takes 64"]),
    (f"{TINY}.profile.prompt_tokens", [512, 64], f"{TINY}.profile.prompt_tokens:", ["64 leaves no room"]),
    (f"{TINY}.profile.generated_tokens", [71], f"{TINY}.profile.generated_tokens:", ["71 is less than", "(72)"]),
    (f"{TINY}.profile.generated_tokens", [128, 9999], f"{TINY}.profile.generated_tokens:", ["9999 after 128"]),
    (f"{TINY}.evaluate.limit", 0, f"{TINY}.evaluate.limit:", ["greater than 0"]),
    (f"{TINY}.profile.prompt_tokens", [64, 64], f"{TINY}.profile.prompt_tokens:", ["64 twice"]),
    (f"{TINY}.data.source", "imagenet", f"{TINY}.data.source:", ["'embedded' or 'llava'", "'imagenet'"]),
    (f"{TINY}.data.source", DROP, f"{TINY}.data.source:", ["required"]),
    (f"{TINY}.data.splits.train.easy_vqa", 3801, f"{TINY}.data:", ["4001", "4000"]),
    (f"{TINY}.data.splits.test.easy_vqa", 1001, f"{TINY}.data:", ["test", "1000"]),
    (f"{TINY}.data.splits.val", {"easy_vqa": 0, "sort_of_clevr": 0}, f"{TINY}.data:", ["val has no images"]),
    (f"{TINY}.data.splits.val", DROP, f"{TINY}.data:", ["splits lacks val"]),
    (f"{TINY}.data.splits.dev", {}, f"{TINY}.data.splits.dev:", ["'val'", "'dev'"]),
    (f"{TINY}.data.splits.train.easy_vqa", -1, f"{TINY}.data.splits.train.easy_vqa:", ["0", "-1"]),
    (f"{TINY}.teacher.source", "hub", f"{TINY}.teacher.source:", ["'shipped'", "'checkpoint'", "'hub'"]),
    (f"{TINY}.teacher.path", DROP, f"{TINY}.teacher:", ["path is required", "shipped"]),
    (f"{TINY}.teacher.path", 7, f"{TINY}.teacher.path:", ["path", "7"]),
    (f"{TINY}.teacher", None, f"{TINY}.teacher:", ["None"]),
    (f"{TINY}.teacher.text.heads", 5, f"{TINY}.teacher.text:", ["heads must divide hidden_size"]),
    (f"{TINY}.teacher.vision.patch_size", 7, f"{TINY}.teacher.vision.patch_size:", ["divide image_size (64)"]),
    (f"{TINY}.teacher.vision.patch_size", 65, f"{TINY}.teacher.vision:", ["must not exceed image_size"]),
    (f"{TINY}.teacher.vision.heads", 3, f"{TINY}.teacher.vision:", ["heads must divide hidden_size"]),
    (f"{TINY}.data", DROP, f"{TINY}.data:", ["required", "source is random"]),
    (f"{TINY}.evaluate", DROP, f"{TINY}.evaluate:", ["required", "source is random"]),
    (f"{TINY}.cache", None, f"{TINY}.cache:", ["mapping", "None"]),
    (f"{TINY}.profile.protocols", ["best"], f"{TINY}.profile.protocols.0:", ["'paper'", "not 'best'"]),
    (f"{TINY}.profile.protocols", [], f"{TINY}.profile.protocols:", ["is empty"]),
    (f"{TINY}.profile.attention", ["flash"], f"{TINY}.profile.attention.0:", ["flash_attention_2", "not 'flash'"]),
    (f"{TINY}.profile.dtype", "float16", f"{TINY}.profile.dtype:", ["'bfloat16'", "not 'float16'"]),
    (f"{TINY}.profile.generated_check", [256], f"{TINY}.profile.generated_check:", ["256", "128, 512"]),
    (f"{TINY}.profile.beyond_positions", "yes", f"{TINY}.profile.beyond_positions:", ["boolean", "'yes'"]),
    (f"{TINY}.teacher.vision_feature_layer", -7, f"{TINY}.teacher:", ["-7", "-6 to 5"]),
    (TINY, [1] * 200, f"{TINY}:", ["mapping", "…"]),
    ("presets", {}, "presets:", ["is empty"]),
    ("presets", ["tiny"], "presets:", ["mapping"]),
]


def name(key: str, value: object) -> str:
    """Of a case, the same in every process."""
    return f"{key} dropped" if value is DROP else f"{key}={value!r:.30}"


@pytest.mark.parametrize(("key", "value", "start", "words"), BAD, ids=[name(k, v) for k, v, _, _ in BAD])
def test_one_line_names_the_key_and_what_is_allowed(raw, key, value, start, words):
    text = message(changed(raw, key, value))
    assert text.startswith(start)
    for word in words:
        assert word in text


def test_a_mistake_is_named_once_though_every_preset_inherits_it(raw):
    assert message(changed(raw, "ablation.losses", ["kd"])).count("kd") == 1
    assert message(changed(raw, "ablation", None)) == "ablation: must be a mapping of keys to values, not None"


def test_a_mistake_in_a_preset_that_is_not_in_use(raw):
    assert raw["preset"] == "tiny"
    for key, value in (("top_k", 0), ("tail_draws", -1)):
        assert message(changed(raw, f"presets.debug.cache.{key}", value)).startswith(f"presets.debug.cache.{key}:")


@pytest.mark.parametrize("name", ["../tiny", "a b", "", "a\nb", 1, None])
def test_a_preset_is_the_name_of_a_folder(raw, name):
    data = changed(raw, "presets", {**raw["presets"], name: raw["presets"]["debug"]})
    assert message(data).startswith("presets.")


@pytest.mark.parametrize(
    ("data", "found"), [(None, "empty"), ([], "a list"), ("tiny", "a str"), (3, "a int"), (True, "a bool")]
)
def test_the_file_must_be_a_mapping(data, found):
    assert message(data) == f"is {found}; must be a mapping with the keys preset, base, ablation, slurm, presets"


def test_an_empty_mapping():
    text = message({})
    for key in ("preset", "ablation", "presets"):
        assert f"{key}: Field required" in text


def test_several_mistakes_are_one_line(raw):
    data = changed(changed(raw, f"{TINY}.cache.mode", "disk"), "presets.debug.distill.steps", 0)
    text = message(data)
    assert f"{TINY}.cache.mode" in text
    assert "presets.debug.distill.steps" in text


def test_a_preset_inherits_the_axes_that_it_does_not_narrow(raw):
    config = load_config(changed(raw, f"{TINY}.ablation", {"seeds": [7], "grid": True}))
    tiny, shared = config.presets["tiny"].ablation, config.ablation
    assert (tiny.seeds, tiny.grid) == ((7,), True)
    assert (shared.seeds, shared.grid) == ((0, 1, 2), False)
    assert tiny.losses == shared.losses
    assert config.presets["debug"].ablation == shared


def test_layouts_have_one_spelling(raw):
    config = load_config(changed(raw, "ablation.layouts", ["even-25.0", "8,0,4", "front-012.50"]))
    assert config.active.ablation.layouts == ("even-25", "0,4,8", "front-12.5")


def test_a_teacher_on_disk_and_a_conversation_file(raw):
    data = changed(raw, f"{TINY}.teacher", {"source": "checkpoint", "path": "somewhere", "depth": 32})
    data = changed(data, f"{TINY}.data", {"source": "llava", "conversations": "a.json", "images": "b"})
    data = changed(data, f"{TINY}.ablation", {"layouts": ["release-12.5"]})
    assert load_config(data).active.teacher.depth == 32
    text = message(changed(data, f"{TINY}.teacher.depth", "deep"))
    assert text.startswith(f"{TINY}.teacher.depth: Input should be a valid integer")


RANDOM = """
teacher:
  source: random
  vision: {image_size: 30, patch_size: 14, hidden_size: 32, intermediate_size: 64, layers: 2, heads: 2}
  text: {hidden_size: 32, intermediate_size: 64, layers: 32, heads: 2, kv_heads: 2, max_position_embeddings: 256}
  vision_feature_select_strategy: default
  vocab_size: 64
profile: {layouts: [even-25, release-12.5], prompt_tokens: [16], generated_tokens: [128]}
"""


@pytest.fixture
def random(raw) -> dict:
    """A configuration with a preset of random weights, which only measures."""
    return changed(raw, "presets.big", yaml.safe_load(RANDOM))


def test_a_random_teacher_is_only_measured(random):
    config = load_config(random | {"preset": "big"})
    preset = config.active
    assert not preset.trains
    assert (preset.teacher.depth, preset.teacher.image_tokens, preset.teacher.head_bias) == (32, 3, True)
    assert all(getattr(preset, name) is None for name in TRAINING)  # the shared ablation is not its either
    assert config.presets["tiny"].trains
    assert preset.profile.protocols == ("same_runtime",)
    assert parse_settings(RandomTeacher, preset.teacher.model_dump_json()) == preset.teacher


def test_what_is_trained_need_not_be_measured(raw):
    assert load_config(changed(raw, f"{TINY}.profile", DROP)).presets["tiny"].profile is None


# key below the preset, value, where the message goes on, words it must have
BAD_RANDOM = [
    ("data", yaml.safe_load(PRESET)["data"], "data:", ["neither trained", "allowed: teacher, profile, gpus"]),
    ("evaluate", {}, "evaluate:", ["allowed: teacher, profile, gpus"]),
    ("ablation", {"seeds": [0]}, "ablation:", ["allowed: teacher, profile, gpus"]),
    ("cache", None, "cache:", ["allowed: teacher, profile, gpus"]),
    ("teacher.vocab_size", DROP, "teacher.vocab_size:", ["required"]),
    ("teacher.vocab_size", 3, "teacher.vocab_size:", ["greater than or equal to 4"]),
    ("teacher.training", {}, "teacher.training:", ["unknown key", "vocab_size, head_bias"]),
    ("teacher.text.heads", 5, "teacher.text:", ["heads must divide hidden_size"]),
    ("teacher.vision_feature_layer", -4, "teacher:", ["-4", "-3 to 2"]),
    ("profile", DROP, "profile:", ["required"]),
    ("profile.prompt_tokens", [3], "profile.prompt_tokens:", ["no room", "an image takes 3"]),
    ("profile.generated_tokens", [128, 256], "profile.generated_tokens:", ["256 after 16", "(256)", "beyond_pos"]),
    ("profile.layouts", ["0,32"], "profile.layouts:", ["layer 32", "0 to 31"]),
]


@pytest.mark.parametrize(
    ("key", "value", "start", "words"), BAD_RANDOM, ids=[name(k, v) for k, v, _, _ in BAD_RANDOM]
)
def test_one_line_for_a_preset_that_only_measures(random, key, value, start, words):
    text = message(changed(random, f"presets.big.{key}", value))
    assert text.startswith(f"presets.big.{start}")
    for word in words:
        assert word in text


def test_contexts_beyond_the_models_positions_are_a_choice(random):
    beyond = changed(
        random, "presets.big.profile", {**random["presets"]["big"]["profile"], "beyond_positions": True}
    )
    beyond = changed(beyond, "presets.big.profile.generated_tokens", [128, 4096])
    beyond = changed(beyond, "presets.big.profile.generated_check", [4096])
    assert load_config(beyond).presets["big"].profile.generated_check == (4096,)


def test_settings_travel_as_json(raw):
    preset = load_config(raw).active
    for part in ("data", "teacher", "cache", "distill", "evaluate", "profile", "ablation"):
        value = getattr(preset, part)
        assert parse_settings(type(value), value.model_dump_json()) == value
    assert parse_settings(Preset, preset.model_dump_json()) == preset


@pytest.mark.parametrize(
    ("model", "text", "words"),
    [
        (Cache, "{", "--settings is not JSON"),
        (Cache, "[]", "mapping"),
        (Cache, '{"mode": "disk"}', "mode: Input should be 'full'"),
        (Distillation, "{}", "steps: Field required"),
        (EmbeddedTeacher, '{"source": "train", "tokens": 1}', "tokens: unknown key"),
    ],
)
def test_bad_settings_of_a_step(model, text, words):
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        parse_settings(model, text)
    assert words in str(caught.value)


def test_settings_do_not_change_after_validation(raw):
    with pytest.raises(ValueError, match="frozen"):
        load_config(raw).active.cache.top_k = 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"- a\n", "is a list"),
        (b"preset: [tiny\n", "not YAML"),
        (b"preset: \xff\n", "not YAML"),
        (b"preset: a\tb: {\n", "not YAML"),
        (b"preset: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, content, words):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: {words}")


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "params.yaml")


def test_the_file_of_the_repository():
    path = ROOT / "params.yaml"
    assert read_config(path) == load_config(yaml.safe_load(path.read_text()))
