# What all rules share: the validated configuration of the preset, its cells, paths and resources.
#
# A rule's output is the record that its step writes into a folder last (report.json, provenance.json,
# manifest.json, results.json); the record holds the hashes of all else in the folder.

import os
import re
import shlex
import sys
from pathlib import Path

import yaml
from snakemake.utils import update_config

from matvlm.config import ConfigError, CheckpointTeacher, LlavaData, load_config
from matvlm.experiments import (
    AXES,
    all_cells,
    base_cell,
    compared_layers,
    evaluation_batches,
)
from matvlm.report import comparison
from matvlm.report.settings import Report
from matvlm.source import code_hash

# Jobs run `python` of the environment that Snakemake runs in, whether it is activated or not.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
)


def load(data):
    """The configuration with all presets validated, and the active preset known to be runnable here."""
    try:
        whole = load_config(data)
    except ConfigError as error:
        stop(f"params.yaml: {error}")
    name, active = whole.preset, whole.active
    for part, kind in (("data", LlavaData), ("teacher", CheckpointTeacher)):
        if isinstance(getattr(active, part), kind):
            stop(
                f"params.yaml: presets.{name}.{part}.source: {getattr(active, part).source} is not supported yet"
            )
    for key, (folder, remedy) in given_folders(active.teacher).items():
        if not (folder / "provenance.json").is_file():
            stop(
                f"params.yaml: presets.{name}.teacher.{key}: {folder} holds no model{remedy}"
            )
    return whole


def given_folders(teacher):
    """Folders that a teacher starts from, by their keys, and what to do where one is missing."""
    training, found = getattr(teacher, "training", None), {}
    if teacher.source == "shipped":
        found["path"] = teacher.path, "; set source to train"
    if teacher.source == "train" and training.start:
        found["training.start"] = training.start, ""
    if teacher.source == "smollm2":
        if teacher.adapter:
            found["adapter"] = teacher.adapter, "; set it to null to train one"
        elif training.vision:
            found["training.vision"] = training.vision, "; set it to null"
    return found


def typed(value):
    """What `--config` nests arrives as text, whatever it is; here it is read as YAML, as the file is."""
    if isinstance(value, dict):
        return {key: typed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [typed(each) for each in value]
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        stop(f"--config: {value!r} is not YAML: {getattr(error, 'problem', error)}")


def one_of(values):
    """A wildcard constraint: these values and no others."""
    return "|".join(sorted({re.escape(str(value)) for value in values}))


def environment(step):
    """The conda environment of a step: with CUDA and the kernels if it asks for GPUs."""
    return f"../../envs/{'gpu' if getattr(PRESET.gpus, step) else 'cpu'}.yaml"


def growing(amount):
    """A resource that grows with each attempt."""
    return lambda wildcards, attempt: amount * attempt


def folder(record):
    """The folder of a record, or of each in a list."""
    if isinstance(record, str):
        return str(Path(record).parent)
    return [folder(one) for one in record]


# Snakemake is content with a result that is there, though what it was made from is not, as in a clone, which has the
# committed results and no runs. So whatever a target shows, it also asks for the runs that this comes from.
def rendered_table(name):
    if name not in TABLES:
        return not_here
    shown = multiext(f"<results>/tables/{name}", ".md", ".tex", ".html")
    return [*shown, *runs_behind(*table_data(name).values())]


def rendered_figure(name):
    if name not in FIGURES:
        return not_here
    shown = multiext(f"<results>/figures/{name}", ".svg", ".png")
    return [*shown, *runs_behind(FIGURES[name])]


def not_here(wildcards):
    """The input of a target that the preset has no sections for."""
    preset = f"params.yaml: presets.{CONFIG.preset}"
    if PRESET.trains:
        stop(f"{preset}: has no section profile, so speed and memory are not measured")
    targets = ["all", "profile", "table_speed", "figure_speed", "figure_memory"]
    stop(
        f"{preset}.teacher.source: {PRESET.teacher.source} has no training or evaluation;"
        f" allowed targets: {', '.join([*targets, 'claims', 'page'])}"
    )


def runs_behind(*tables):
    """Files below `<run>` that CSV files come from."""
    found = []
    for path in tables:
        kind = Path(path).stem
        committed = path.startswith("<results>")
        found += collected_files(kind, CELLS) if committed else [path]
    return found


def student_files(kind, name, cells):
    """File ``name`` of every cell and seed below ``<run>/{kind}``."""
    return [
        f"<run>/{kind}/{cell.path}/seed{seed}/{name}"
        for cell in cells
        for seed in PRESET.ablation.seeds
    ]


def adapter_record(teacher):
    """The record of what a language model is joined with: trained here, or given."""
    if teacher.trained_here:
        return "<run>/adapter/provenance.json"
    return f"{teacher.adapter}/provenance.json"


def collected_files(kind, cells):
    """What one kind of CSV file is collected from, for these cells."""
    profiles = [f"<run>/profile/{subject}.json" for subject in SUBJECTS]
    if not PRESET.trains:
        return {"profile": profiles, "runs": profiles}[kind]
    results = ["<run>/eval/teacher/results.json"]
    results += student_files("eval/student", "results.json", cells)
    records = student_files("distill", "provenance.json", cells)
    if PRESET.teacher.source == "smollm2":
        records.append(adapter_record(PRESET.teacher))
    return {
        "eval": results,
        "train": student_files("distill", "log.csv", cells),
        "profile": profiles,
        "runs": ["<run>/teacher/provenance.json", *records, *results, *profiles],
    }[kind]


def table_data(table):
    """CSV files of a table, by the name of the option that takes them."""
    if table == "speed":
        return {"data": "<results>/data/profile.csv"}
    return {
        "data": f"<run>/collected/{table}/eval.csv",
        "train": f"<run>/collected/{table}/train.csv",
    }


OVERRIDES = typed(workflow.config_settings.overwrite_config)
update_config(config, OVERRIDES)
CONFIG = load(config)
PRESET = CONFIG.active
REPORT = Report.of(CONFIG, OVERRIDES)
MEASURED = PRESET.profile is not None
SUBJECTS = ["teacher", *PRESET.profile.layouts] if MEASURED else []
FIGURES = dict.fromkeys(["speed", "memory"] * MEASURED, "<results>/data/profile.csv")
# A preset whose weights are random has no data, cells or scores: it only measures.
if PRESET.trains:
    CELLS = all_cells(PRESET, CONFIG.base)
    TABLE_CELLS = {
        "main": [base_cell(CONFIG.base)],
        **{axis: REPORT.cells(axis) for axis in AXES},
        **({"grid": REPORT.grid_cells} if PRESET.ablation.grid else {}),
    }
    FIGURES |= {
        "convergence": "<run>/collected/inits/train.csv",
        "ablations": "<results>/data/eval.csv",
        "radar": "<run>/collected/ratios/eval.csv",
    }
    SPLITS = ["distill", "val", "test"]
    SPLITS += ["train"] * PRESET.teacher.trained_here
    CACHED = PRESET.cache.mode != "online"
    # How many jobs make a cache and what it holds beyond what a cell needs change no cell's results.
    CACHE_SETTINGS = PRESET.cache.model_dump_json(exclude={"states", "jobs"})
    CACHE_PARTS = range(PRESET.cache.jobs if CACHED and PRESET.cache.jobs > 1 else 0)
    CACHE_LAYERS = ""
    if PRESET.cache.states == "needed":
        CACHE_LAYERS = (
            f"--layers {' '.join(map(str, compared_layers(PRESET, CONFIG.base)))}"
        )
    SEEDS = PRESET.ablation.seeds
else:
    CELLS, TABLE_CELLS, SPLITS, SEEDS, CACHE_PARTS = [], {}, [], [], []
TABLES = [*TABLE_CELLS] + ["speed"] * MEASURED
KINDS = ["eval", "train"] * PRESET.trains + ["profile"] * MEASURED + ["runs"]
EVERYTHING = [
    "<results>/index.html",
    "<results>/metrics.json",
    "<results>/data/runs.csv",
    *collected_files("runs", CELLS),
]
# The verdicts of presets as they lie here, which is as they were committed. No other preset is ever computed for
# them: this workflow has rules for the active one alone.
COMPARED = [str(path) for path in comparison.present(Path("results"))]


pathvars:
    run=f"runs/{CONFIG.preset}",
    benchmarks=f"runs/{CONFIG.preset}/benchmarks",
    results=f"results/{CONFIG.preset}",
    logs=f"logs/{CONFIG.preset}",


wildcard_constraints:
    split=one_of(PRESET.data.splits if PRESET.trains else []),
    init=one_of(cell.init for cell in CELLS),
    layout=one_of(cell.layout for cell in CELLS),
    loss=one_of(cell.loss for cell in CELLS),
    divergence=one_of(cell.divergence for cell in CELLS),
    seed=one_of(SEEDS),
    part=one_of(CACHE_PARTS),
    table=one_of(TABLES),
    figure=one_of(FIGURES),
    kind=one_of(KINDS),
